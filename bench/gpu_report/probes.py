"""Jobs without a model's row: the machine, the noise, the GPU tests, the ceilings, a profile."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.gpu_report import BATCHES, DATASETS
from bench.gpu_report.cells import DRY_BATCH, Bench, Cell
from bench.machine import HOME, gpu, machine, output_of
from bench.roofline import measure_ceilings
from bench.timing import run_trial
from engine.doctor import examine
from engine.gpu.device import open_gpu
from engine.gpu.noise_kernel import NoiseKernel, consecutive
from engine.timing import median_ms
from lddgan.errors import LddganError
from lddgan.names import Device
from lddgan.noise import draw
from lddgan.preset import Preset

COMPILERS: Final = (("gcc", "-dumpfullversion"), ("nvcc", "--version"))
REQUESTS: Final = ((2**63 - 1, 2**32 - 7), (5, 0))  # seed and first index of the noise
IMAGES: Final = 480  # ten million draws for each request
LAUNCHES: Final = 20
TESTS: Final = ("tests/engine", "tests/engine/backends/trt/test_gpu.py")
DRY_TESTS: Final = ("tests/engine/gpu/test_graphs.py",)
TESTS_LOG: Final = "gpu_tests.log"
TEST_SECONDS: Final = 60  # for one test
MAX_FAILURES: Final = 12  # of tests, after which the rest is left out
PROFILE: Final = "profile.txt"
PROFILE_KERNELS: Final = 60  # in the profile
JOURNAL_KERNELS: Final = 12  # of them, in the journal


def facts(dry: bool) -> dict[str, Any]:
    """What `lddgan doctor` finds, the compilers, and the GPU and its state."""
    import torch

    cudnn: Any = torch.backends.cudnn
    found = examine().model_dump() | {"cudnn": cudnn.version(), "load": machine().load}
    found["compilers"] = {command[0]: output_of(*command) for command in COMPILERS}
    if not dry:
        found["gpu"] = gpu().model_dump()
        found["device"] = str(torch.cuda.get_device_properties(0))
    return found


def noise(preset: Preset, images: int = IMAGES) -> dict[str, Any]:
    """Compare the kernel's noise with numpy's, bit for bit. Raises LddganError if it differs."""
    device = open_gpu()
    clock = time.perf_counter()
    kernel = NoiseKernel(device.arch)
    compiled = time.perf_counter() - clock
    draws = different = 0
    for seed, first in REQUESTS:
        true = draw(preset, first, images, seed=seed)
        made = [device.empty(array.shape, "float32") for array in true]
        request = device.upload(consecutive(seed, first, images))
        launch = partial(kernel.launch, device.stream, request, *made)
        launch()
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
        f"ms_for_{images}_images": round(median_ms(device.timer(), launch, LAUNCHES), 4),
    }


def tests(out: Path, dry: bool) -> dict[str, Any]:
    """Run the tests that need a GPU; their output goes to TESTS_LOG.

    Raises LddganError if one fails.
    """
    each = (f"--timeout={TEST_SECONDS}",) if find_spec("pytest_timeout") else ()
    command = (
        *(sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider"),
        *(*each, f"--maxfail={MAX_FAILURES}", *(DRY_TESTS if dry else TESTS)),
    )
    log = out / TESTS_LOG
    with log.open("w") as said:
        done = subprocess.run(command, cwd=HOME, stdout=said, stderr=subprocess.STDOUT, check=False)
    told = (log.read_text(errors="replace").strip() or "nothing").rpartition("\n")[2].strip("= ")
    if done.returncode:
        raise LddganError(f"{told}; {log} says why")
    return {"said": told}


def ceilings(preset: Preset, device: Device) -> dict[str, Any]:
    """Rates of the GPU. Raises LddganError if they cannot be measured."""
    found = measure_ceilings(preset, device)
    if found.note is not None:
        raise LddganError(found.note)
    return found.model_dump()


def profile(bench: Bench, out: Path) -> dict[str, Any]:
    """Time of each kernel in a batch of the fused engine, written to PROFILE.

    The steps are launched one by one; a kernel takes as long as in the CUDA graph.
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
    rows = sorted(made.key_averages(), key=lambda row: -getattr(row, name))[:PROFILE_KERNELS]
    ms = [(round(getattr(row, name) / 1e3, 3), row.count, row.key) for row in rows]
    if not ms or ms[0][0] == 0:
        raise LddganError("PyTorch's profiler saw no kernel; CUPTI is missing or not permitted")
    text = "".join(f"{taken:10.3f} ms {count:6d} {key[:180]}\n" for taken, count, key in ms)
    (out / PROFILE).write_text(text, encoding="utf-8")
    return {"slowest": [(taken, count, key[:80]) for taken, count, key in ms[:JOURNAL_KERNELS]]}
