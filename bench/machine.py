"""Facts about the machine and the code that a result was measured with."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from engine.doctor import processor_name
from engine.gpu.driver import PROGRAM, ask_driver, find_gpu
from lddgan.errors import BadInput, LddganError
from lddgan.extras import usable_cores, version_of, why_missing
from lddgan.frozen import Frozen

HOME = Path(__file__).resolve().parent.parent
COMMIT: Final = "LDDGAN_COMMIT"  # environment: the commit of a copy without git's history
CODE = ("lddgan", "export", "engine", "bench", "cli.py", ":!bench/results")
PACKAGES = (
    "torch",
    "triton",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-core",
    "numpy",
)
GPU_FIELDS = {  # of Gpu -> of nvidia-smi
    "name": "name",
    "driver": "driver_version",
    "sm_clock": "clocks.sm",
    "power_limit": "power.limit",
    "sm_clock_max": "clocks.max.sm",
    "memory_clock": "clocks.mem",
    "memory_clock_max": "clocks.max.mem",
    "power_draw": "power.draw",
    "temperature": "temperature.gpu",
    "memory_used": "memory.used",
    "memory_total": "memory.total",
}


class Gpu(Frozen):
    """What the driver says of the first GPU at one moment, in its own words. Read, never set."""

    name: str
    driver: str
    sm_clock: str  # "1980 MHz"
    power_limit: str  # "700.00 W"
    sm_clock_max: str | None = None
    memory_clock: str | None = None
    memory_clock_max: str | None = None
    power_draw: str | None = None
    temperature: str | None = None  # degrees Celsius
    memory_used: str | None = None  # of every process, "1024 MiB"
    memory_total: str | None = None


class Machine(Frozen):
    """Where a result was measured."""

    cpu: str
    cores: int  # that this process may use
    load: float  # runnable processes of the last minute, when the run began
    gpu: Gpu | None  # while the engine worked; None if the run was on the CPU


def load() -> float:
    """Runnable processes of the last minute."""
    return round(os.getloadavg()[0], 2)


def machine(before: float, gpu: Gpu | None) -> Machine:
    """This machine: its load before a run, its GPU during the run if it was on one."""
    return Machine(cpu=processor_name(), cores=usable_cores(), load=before, gpu=gpu)


NO_SMI: Final = "unknown: nvidia-smi is missing"


def gpu() -> Gpu:
    """The first GPU, now; its name alone where a container is given no nvidia-smi.

    Raises LddganError if there is no GPU, or nvidia-smi does not answer.
    """
    if shutil.which(PROGRAM) is None and (name := find_gpu().description) is not None:
        return Gpu(name=name, driver=NO_SMI, sm_clock=NO_SMI, power_limit=NO_SMI)
    said = [part.strip() for part in ask_driver(",".join(GPU_FIELDS.values())).split(",")]
    if len(said) != len(GPU_FIELDS):
        raise LddganError(f"nvidia-smi gave {len(said)} values and not {len(GPU_FIELDS)}: {said}")
    return Gpu.model_validate(dict(zip(GPU_FIELDS, said, strict=True)))


def gpu_memory_mib(device: str) -> float | None:
    """Memory in use on the whole GPU, whoever uses it; None on the CPU, or if CUDA does not say.

    Asked of CUDA in a process that uses it: nvidia-smi may take a second.
    """
    if device != "cuda" or why_missing("cuda.bindings") is not None:
        return None
    from cuda.bindings import driver

    result, free, total = driver.cuMemGetInfo()
    return (total - free) / 2**20 if result == driver.CUresult.CUDA_SUCCESS else None


# As PyTorch comes, which is how the paper measures.
PAPERS_SETTINGS: Final = {
    "cuda.matmul.allow_tf32": False,
    "cudnn.allow_tf32": True,
    "cudnn.benchmark": False,
}


def torch_settings() -> dict[str, bool] | None:
    """PyTorch's switches that decide how fp32 is computed, as they are; None without torch."""
    if why_missing("torch") is not None:
        return None
    import torch

    cudnn: Any = torch.backends.cudnn
    return {
        "cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": cudnn.allow_tf32,
        "cudnn.benchmark": cudnn.benchmark,
    }


def in_words(settings: dict[str, bool]) -> str:
    """`torch_settings` as a sentence."""
    products, convolutions, benchmark = (
        "on" if settings[name] else "off" for name in PAPERS_SETTINGS
    )
    protocol = "" if settings == PAPERS_SETTINGS else "not "
    return (
        f"PyTorch's fp32: TF32 {convolutions} in convolutions and {products} in matrix products, "
        f"cudnn.benchmark {benchmark}, which is {protocol}the paper's protocol"
    )


def commit() -> str | None:
    """What COMMIT names, or the checkout this code is in, "+dirty" if it was changed; else None.

    Raises BadInput if COMMIT holds something else.
    """
    named = os.environ.get(COMMIT)
    if named is not None:
        if not re.fullmatch(r"[0-9a-f]{7,40}(\+dirty)?", named):
            raise BadInput(
                f"the commit is '{named}', and must be a hash of git (--commit, {COMMIT})"
            )
        return named
    git = ("git", "-C", str(HOME))
    top = _output(*git, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != HOME:
        return None
    head = _output(*git, "rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+dirty" if _output(*git, "status", "--porcelain", "--", *CODE) else "")


NO_COMMIT: Final = f"commit unknown: this is no checkout of git; {COMMIT} names it"


def versions() -> dict[str, str]:
    """Python and the packages that compute, where installed."""
    found = {package: version_of(package) for package in PACKAGES}
    return {"python": platform.python_version()} | {
        package: version for package, version in found.items() if version is not None
    }


def peak_memory_mib() -> float | None:
    """High-water mark of this process's resident memory so far (VmHWM); None if not Linux.

    It holds the interpreter, libraries, weights and activations.  `ru_maxrss` is not used: it is
    inherited from the process that started this one.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peaks = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else None


def _output(*command: str) -> str | None:
    """What a program prints; None if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
