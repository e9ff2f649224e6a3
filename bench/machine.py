"""Describes the machine and the code of a measurement, and runs commands as child processes."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from operator import attrgetter
from pathlib import Path
from threading import Thread
from typing import IO, Final, Literal

from engine.doctor import processor_name
from engine.gpu.driver import PROGRAM, ask_driver, find_gpu
from lddgan.errors import BadInput, LddganError
from lddgan.extras import usable_cores, version_of, why_missing
from lddgan.frozen import Frozen
from lddgan.progress import to_stderr

HOME = Path(__file__).resolve().parent.parent
COMMIT: Final = "LDDGAN_COMMIT"  # environment variable: the commit, for a copy without git
CODE: Final = ("lddgan", "export", "engine", "bench", "cli.py", ":!bench/results")
PACKAGES: Final = (
    *("torch", "triton", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"),
    *("cuda-core", "numpy"),
)
STATUS = Path("/proc/self/status")
PIPE_SECONDS: Final = 5.0  # to read what a child left in its pipe
NO_SMI: Final = "unknown: nvidia-smi is missing"
NO_COMMIT: Final = f"commit unknown: this is no checkout of git; {COMMIT} names it"
PAPERS_SETTINGS: Final = {  # of torch.backends: PyTorch's defaults, with which the paper measures
    "cuda.matmul.allow_tf32": False,
    "cudnn.allow_tf32": True,
    "cudnn.benchmark": False,
}
GPU_FIELDS: Final = (  # of nvidia-smi, in the order of Gpu's
    *("name", "driver_version", "clocks.sm", "power.limit", "clocks.max.sm", "clocks.mem"),
    *("power.draw", "temperature.gpu"),
)


class Gpu(Frozen):
    """State of the first GPU at one moment, as text of nvidia-smi. lddgan never sets any of it."""

    name: str
    driver: str
    sm_clock: str  # "1980 MHz"
    power_limit: str  # "700.00 W"
    sm_clock_max: str | None = None
    memory_clock: str | None = None
    power_draw: str | None = None
    temperature: str | None = None  # degrees Celsius


class Machine(Frozen):
    """Hardware of a result."""

    cpu: str
    cores: int  # usable by this process
    load: float  # runnable processes in the minute before the run
    gpu: Gpu | None = None  # during the run; None for a run on the CPU


def machine() -> Machine:
    """Describe this machine before a run on the CPU; for a run on a GPU, set `gpu` during it."""
    load = round(os.getloadavg()[0], 2)
    return Machine(cpu=processor_name(), cores=usable_cores(), load=load)


def gpu() -> Gpu:
    """Read the state of the first GPU, or only its name if nvidia-smi is missing.

    Raises LddganError if there is no GPU or nvidia-smi does not answer.
    """
    if shutil.which(PROGRAM) is None and (name := find_gpu().description) is not None:
        return Gpu(name=name, driver=NO_SMI, sm_clock=NO_SMI, power_limit=NO_SMI)
    got = [part.strip() for part in ask_driver(",".join(GPU_FIELDS)).split(",")]
    if len(got) != len(GPU_FIELDS):
        raise LddganError(f"nvidia-smi gave {len(got)} values and not {len(GPU_FIELDS)}: {got}")
    return Gpu.model_validate(dict(zip(Gpu.model_fields, got, strict=True)))


def gpu_memory_mib(device: str) -> float | None:
    """Read the MiB that all processes use on the GPU. Returns None on the CPU or if CUDA fails.

    Asks CUDA, because nvidia-smi can take a second. CUDA must be in use in this process.
    """
    if device != "cuda" or why_missing("cuda.bindings") is not None:
        return None
    from cuda.bindings import driver

    result, free, total = driver.cuMemGetInfo()
    return (total - free) / 2**20 if result == driver.CUresult.CUDA_SUCCESS else None


def torch_settings(device: str) -> dict[str, bool] | None:
    """Read PyTorch's switches for fp32, by name. Returns None on the CPU or without torch."""
    if device != "cuda" or why_missing("torch") is not None:
        return None
    import torch

    return {name: attrgetter(name)(torch.backends) for name in PAPERS_SETTINGS}


def in_words(settings: dict[str, bool]) -> str:
    """Write `torch_settings` as a sentence."""
    products, conv, benchmark = ("on" if settings[name] else "off" for name in PAPERS_SETTINGS)
    protocol = "" if settings == PAPERS_SETTINGS else "not "
    return (
        f"PyTorch's fp32: TF32 {conv} in convolutions and {products} in matrix products, "
        f"cudnn.benchmark {benchmark}, which is {protocol}the paper's protocol"
    )


def commit() -> str | None:
    """Read the commit of this code: from COMMIT, or from git ("+dirty" if files were changed).

    Returns None if neither is there. Raises BadInput if COMMIT is not a hash.
    """
    named = os.environ.get(COMMIT)
    if named is not None:
        if not re.fullmatch(r"[0-9a-f]{7,40}(\+dirty)?", named):
            raise BadInput(
                f"the commit is '{named}', and must be a hash of git (--commit, {COMMIT})"
            )
        return named
    return checked_out_commit()


@cache
def checked_out_commit() -> str | None:
    """Ask git for the commit of this code, once per process. Returns None outside a checkout."""
    git = ("git", "-C", str(HOME))
    found = output_of(*git, "rev-parse", "--show-toplevel", "HEAD")
    folder, _, head = (found or "").rpartition("\n")
    if not head or Path(folder).resolve() != HOME:
        return None
    return head + ("+dirty" if output_of(*git, "status", "--porcelain", "--", *CODE) else "")


def versions() -> dict[str, str]:
    """List the versions of Python and of the installed packages that compute."""
    found = {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES}
    return {package: version for package, version in found.items() if version is not None}


def peak_memory_mib() -> float | None:
    """Read the peak resident memory of this process. Returns None where the system does not tell.

    Includes the interpreter and libraries. `ru_maxrss` would include the parent process's peak.
    """
    return memory_mib("VmHWM")


def memory_mib(field: Literal["VmRSS", "VmHWM"]) -> float | None:
    """Read this process's resident memory, now or at its peak. Returns None if it is not told."""
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text()) if STATUS.is_file() else None
    return int(found[1]) / 1024 if found else None


def output_of(*command: str) -> str | None:
    """Run a program and return what it prints. Returns None if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, check=False)
    return os.fsdecode(done.stdout).strip() if done.returncode == 0 else None


def run_child(
    command: Sequence[str], seconds: float, *, stdout: IO[str] | int | None = subprocess.DEVNULL
) -> str | None:
    """Run a command for at most `seconds`. Returns why it failed: the last line of its stderr.

    Returns None if it succeeded. Passes its stderr on, and writes its stdout to `stdout` (None:
    this process's stdout). Ends all processes that the command started.
    """
    process = subprocess.Popen(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        env=os.environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},  # the order of nvidia-smi
    )
    last: deque[str] = deque(maxlen=1)
    relay = Thread(target=_relay, args=(process.stderr, last), daemon=True)
    relay.start()
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"not done within {seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError):  # no process of its group is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        relay.join(PIPE_SECONDS)
    if code < 0:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    last_line = last[0].removeprefix("error: ") if last else ""
    return None if code == 0 else last_line or f"ended with exit code {code}"


def _relay(pipe: IO[str], last: deque[str]) -> None:
    for line in pipe:
        to_stderr(line.rstrip("\n"))
        if line.strip():
            last.append(line.strip())
