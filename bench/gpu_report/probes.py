"""What is found without a model's row: the machine, the noise, the GPU tests, rates, a profile."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from bench.gpu_report import BATCHES, DATASETS
from bench.gpu_report.cells import DRY_BATCH, Bench, Cell
from bench.machine import HOME, gpu, load, machine, versions
from bench.roofline import Ceilings, Device, measure_ceilings
from bench.timing import run_trial
from engine.gpu.device import Gpu, open_gpu
from engine.gpu.noise_kernel import NoiseKernel
from engine.registry import survey
from lddgan.errors import LddganError
from lddgan.extras import version_of
from lddgan.noise import sampler_noise
from lddgan.preset import Preset

LIBRARIES: Final = (  # beside those of a row
    "onnx",
    "onnxscript",
    "cuda-bindings",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "nvidia-cuda-nvrtc",
    "pydantic",
    "safetensors",
    "pytest",
)
COMPILERS: Final = (("gcc", "-dumpfullversion"), ("nvcc", "--version"))
REQUESTS: Final = ((2**63 - 1, 2**32 - 7), (5, 0))  # seed and first index of the noise
IMAGES: Final = 480  # whose noise is ten million draws for each request
LAUNCHES: Final = 20
TESTS: Final = ("tests/engine", "tests/engine/backends/trt/test_gpu.py")
DRY_TESTS: Final = ("tests/engine/gpu/test_graphs.py",)
TESTS_LOG: Final = "gpu_tests.log"
TEST_SECONDS: Final = 60  # for one of them
FAILURES: Final = 12  # after which the rest of the tests is left
PROFILE: Final = "profile.txt"
PROFILED: Final = 60  # kernels that the profile lists
TOLD: Final = 12  # of them, in the journal


def facts(dry: bool) -> dict[str, Any]:
    """Versions, the GPU and its state, and which engines run here and why the others do not."""
    import torch

    cudnn: Any = torch.backends.cudnn
    more = {name: version_of(name) for name in LIBRARIES}
    found: dict[str, Any] = {
        "versions": versions() | {name: value for name, value in more.items() if value},
        "cudnn": cudnn.version(),
        "machine": machine(load(), None).model_dump(),
        "engines": {f"{one.engine} on {one.device}": one.why_not or "runs" for one in survey()},
        "compilers": {command[0]: last_line(*command) for command in COMPILERS},
    }
    if dry:
        return found
    clock = time.perf_counter()
    found["gpu"] = gpu().model_dump()
    found["nvidia_smi_seconds"] = round(time.perf_counter() - clock, 2)
    said: Any = torch.cuda.get_device_properties(0)
    names = ("name", "multi_processor_count", "total_memory", "L2_cache_size", "major", "minor")
    found["device"] = {name: getattr(said, name, None) for name in names}
    return found


def last_line(*command: str) -> str | None:
    """The end of what a program prints; None where there is none."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().rpartition("\n")[2]


def noise(preset: Preset, images: int = IMAGES) -> dict[str, Any]:
    """Compare the kernel's noise with numpy's, bit for bit. Raises LddganError if it differs."""
    device = open_gpu()
    clock = time.perf_counter()
    kernel = NoiseKernel(device.arch)
    compiled = time.perf_counter() - clock
    draws = different = 0
    for seed, first in REQUESTS:
        true = sampler_noise(
            seed,
            first,
            images,
            latent_shape=preset.latent_shape,
            nz=preset.generator.nz,
            steps=preset.steps,
        )
        made = [device.empty(array.shape, "float32") for array in true]
        request = device.upload(np.array([seed, first], np.uint64))
        kernel.launch(device.stream, request, *made)
        for ours, numpys in zip(made, true, strict=True):
            bits = device.download(ours).view(np.uint32)
            draws += numpys.size
            different += int(np.count_nonzero(bits != numpys.view(np.uint32)))
    if different:
        raise LddganError(f"{different:,} of {draws:,} draws are not numpy's, bit for bit")
    return {
        "draws": draws,
        "different": different,
        "nvrtc_seconds": round(compiled, 2),
        f"ms_for_{images}_images": round(launch_ms(device, kernel, request, made), 4),
    }


def launch_ms(device: Gpu, kernel: NoiseKernel, request: Any, made: list[Any]) -> float:
    timer, taken = device.timer(), []
    for _ in range(LAUNCHES):
        start = timer.mark()
        kernel.launch(device.stream, request, *made)
        taken.append(timer.milliseconds(start, timer.mark()))
    return median(taken)


def tests(out: Path, dry: bool, _limit: float) -> dict[str, Any]:
    """Run the tests that need a GPU; their output goes to TESTS_LOG.

    Raises LddganError if one fails.
    """
    each = (f"--timeout={TEST_SECONDS}",) if find_spec("pytest_timeout") else ()
    command = (
        *(sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider"),
        *(*each, f"--maxfail={FAILURES}", *(DRY_TESTS if dry else TESTS)),
    )
    log = out / TESTS_LOG
    with log.open("w") as said:
        done = subprocess.run(command, cwd=HOME, stdout=said, stderr=subprocess.STDOUT, check=False)
    told = (log.read_text().strip() or "nothing").rpartition("\n")[2].strip("= ")
    if done.returncode:
        raise LddganError(f"{told}; {log} says why")
    return {"said": told}


def ceilings(preset: Preset, device: Device) -> dict[str, Any]:
    """Rates of the GPU. Raises LddganError where they cannot be measured."""
    found: Ceilings = measure_ceilings(preset, device)
    if found.note is not None:
        raise LddganError(found.note)
    return found.model_dump()


def profile(bench: Bench, out: Path, _limit: float) -> dict[str, Any]:
    """Where a batch of the fused engine spends its time, kernel by kernel; all go to PROFILE.

    Its steps are launched one by one, which takes the kernels no longer than in the CUDA graph.
    """
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    batch = DRY_BATCH if bench.dry else BATCHES[0]
    side = bench.open(Cell(DATASETS[0], batch, "fused", "fp16"), batch, cuda_graph=False)
    for _ in range(2):
        run_trial(side, 0, batch)
    seen = ProfilerActivity.CPU if bench.dry else ProfilerActivity.CUDA
    with recorded(activities=[seen]) as made:
        run_trial(side, 0, batch)
    name = "self_cpu_time_total" if bench.dry else "self_device_time_total"
    rows = sorted(made.key_averages(), key=lambda row: -getattr(row, name))[:PROFILED]
    ms = [(round(getattr(row, name) / 1e3, 3), row.count, row.key) for row in rows]
    if not ms or ms[0][0] == 0:
        raise LddganError("PyTorch's profiler saw no kernel; CUPTI is missing or not permitted")
    text = "".join(f"{taken:10.3f} ms {count:6d} {key[:180]}\n" for taken, count, key in ms)
    (out / PROFILE).write_text(text)
    return {"slowest": [(taken, count, key[:80]) for taken, count, key in ms[:TOLD]]}
