"""The machine and the code that a result is measured with, and commands run in a process each."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Thread
from typing import IO, Any, Final

from engine.doctor import processor_name
from engine.gpu.driver import PROGRAM, ask_driver, find_gpu
from lddgan.errors import BadInput, LddganError
from lddgan.extras import usable_cores, version_of, why_missing
from lddgan.frozen import Frozen

HOME = Path(__file__).resolve().parent.parent
COMMIT: Final = "LDDGAN_COMMIT"  # environment: the commit of a copy without git's history
CODE: Final = ("lddgan", "export", "engine", "bench", "cli.py", ":!bench/results")
PACKAGES: Final = (
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
PIPE_SECONDS: Final = 5.0  # for what a child has left in its pipe
NO_SMI: Final = "unknown: nvidia-smi is missing"
NO_COMMIT: Final = f"commit unknown: this is no checkout of git; {COMMIT} names it"
PAPERS_SETTINGS: Final = {  # PyTorch as it comes, which is how the paper measures
    "cuda.matmul.allow_tf32": False,
    "cudnn.allow_tf32": True,
    "cudnn.benchmark": False,
}
GPU_FIELDS: Final = {  # of Gpu -> of nvidia-smi
    "name": "name",
    "driver": "driver_version",
    "sm_clock": "clocks.sm",
    "power_limit": "power.limit",
    "sm_clock_max": "clocks.max.sm",
    "memory_clock": "clocks.mem",
    "power_draw": "power.draw",
    "temperature": "temperature.gpu",
}


class Gpu(Frozen):
    """The state of the first GPU at one moment, in the driver's own words. It is never set."""

    name: str
    driver: str
    sm_clock: str  # "1980 MHz"
    power_limit: str  # "700.00 W"
    sm_clock_max: str | None = None
    memory_clock: str | None = None
    power_draw: str | None = None
    temperature: str | None = None  # degrees Celsius


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
    """This machine, its load before a run and its GPU during the run, if it was on one."""
    return Machine(cpu=processor_name(), cores=usable_cores(), load=before, gpu=gpu)


def gpu() -> Gpu:
    """The state of the first GPU now; only its name where there is no nvidia-smi.

    Raises LddganError if there is no GPU or nvidia-smi does not answer.
    """
    if shutil.which(PROGRAM) is None and (name := find_gpu().description) is not None:
        return Gpu(name=name, driver=NO_SMI, sm_clock=NO_SMI, power_limit=NO_SMI)
    said = [part.strip() for part in ask_driver(",".join(GPU_FIELDS.values())).split(",")]
    if len(said) != len(GPU_FIELDS):
        raise LddganError(f"nvidia-smi gave {len(said)} values and not {len(GPU_FIELDS)}: {said}")
    return Gpu.model_validate(dict(zip(GPU_FIELDS, said, strict=True)))


def gpu_memory_mib(device: str) -> float | None:
    """MiB in use on the GPU by all processes. Returns None on the CPU or if CUDA does not say.

    CUDA is asked, in a process that uses it: nvidia-smi may take a second.
    """
    if device != "cuda" or why_missing("cuda.bindings") is not None:
        return None
    from cuda.bindings import driver

    result, free, total = driver.cuMemGetInfo()
    return (total - free) / 2**20 if result == driver.CUresult.CUDA_SUCCESS else None


def torch_settings() -> dict[str, bool] | None:
    """PyTorch's switches for fp32 as they are now. Returns None without torch."""
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
    """The commit of this code: that in COMMIT, or of git with "+dirty" if files were changed.

    Returns None outside a checkout. Raises BadInput if COMMIT holds no hash.
    """
    named = os.environ.get(COMMIT)
    if named is not None:
        if not re.fullmatch(r"[0-9a-f]{7,40}(\+dirty)?", named):
            raise BadInput(
                f"the commit is '{named}', and must be a hash of git (--commit, {COMMIT})"
            )
        return named
    return checked_out()


@cache
def checked_out() -> str | None:
    """The commit of the checkout that this code lies in, as it was when first asked."""
    git = ("git", "-C", str(HOME))
    top = output_of(*git, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != HOME:
        return None
    head = output_of(*git, "rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+dirty" if output_of(*git, "status", "--porcelain", "--", *CODE) else "")


def versions() -> dict[str, str]:
    """Python and the packages that compute, where installed."""
    found = {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES}
    return {package: version for package, version in found.items() if version is not None}


def peak_memory_mib() -> float | None:
    """Peak resident memory of this process so far (VmHWM). Returns None if this is not Linux.

    It holds the interpreter, libraries, weights and activations. `ru_maxrss` is not used: a process
    inherits it from the one that started it.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peaks = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else None


def output_of(*command: str) -> str | None:
    """What a program prints. Returns None if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def run_child(
    command: Sequence[str], seconds: float, *, stdout: IO[str] | int | None = subprocess.DEVNULL
) -> str | None:
    """Run a command for at most `seconds`. Returns why it failed, or None.

    Its stderr is passed on, and the last line of it is the reason. Its stdout goes to `stdout`, or
    to that of this process if None. All processes that it started end with it.
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
        _end(process)
        relay.join(PIPE_SECONDS)
    if code < 0:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    last_line = last[0].removeprefix("error: ") if last else ""
    return None if code == 0 else last_line or f"ended with exit code {code}"


def _relay(pipe: IO[str], last: deque[str]) -> None:
    for line in pipe:
        sys.stderr.write(line)
        if line.strip():
            last.append(line.strip())


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):  # none is left, not even one that it started
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
