"""Facts about the machine and the code that a result was measured with."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engine.doctor import processor_name, usable_cores
from lddgan.errors import LddganError
from lddgan.presets import Frozen

HOME = Path(__file__).resolve().parent.parent
CODE = ("lddgan", "export", "engine", "bench", "cli.py", ":!bench/results")
PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "numpy")
GPU_FIELDS = "name,driver_version,clocks.sm,power.limit"


class Gpu(Frozen):
    """What the driver says of the first GPU."""

    name: str
    driver: str
    sm_clock: str  # at the end of the run, "1980 MHz"
    power_limit: str  # "700.00 W"


class Machine(Frozen):
    """Where a result was measured."""

    cpu: str
    cores: int  # that this process may use
    load: float  # runnable processes of the last minute, when the run began
    gpu: Gpu | None  # None if the run was on the CPU


def machine(device: str, load: float) -> Machine:
    """This machine, for a run on `device`; `load` was read before it (`load_average`)."""
    return Machine(
        cpu=processor_name(),
        cores=usable_cores(),
        load=load,
        gpu=gpu() if device == "cuda" else None,
    )


def load_average() -> float:
    return round(os.getloadavg()[0], 2)


def gpu() -> Gpu:
    """The first GPU. Raises LddganError if nvidia-smi does not answer."""
    asked = _output("nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader")
    if not asked:
        raise LddganError("nvidia-smi does not say what GPU this is")
    name, driver, clock, power = (part.strip() for part in asked.splitlines()[0].split(","))
    return Gpu(name=name, driver=driver, sm_clock=clock, power_limit=power)


def commit() -> str | None:
    """Hash of the checkout this code is in, "+dirty" if it was changed; None outside of one."""
    git = ("git", "-C", str(HOME))
    top = _output(*git, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != HOME:
        return None
    head = _output(*git, "rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+dirty" if _output(*git, "status", "--porcelain", "--", *CODE) else "")


def versions() -> dict[str, str]:
    """Python and the packages that compute, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


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
