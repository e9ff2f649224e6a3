"""Asking the NVIDIA driver, through nvidia-smi or a child. Loads no CUDA library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

from lddgan.errors import LddganError

DRIVER_SECONDS: Final = 20  # after which a driver that does not answer counts as broken
PROGRAM: Final = "nvidia-smi"
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
NAMING: Final = """
import ctypes, sys
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError:
    sys.exit("no driver is installed here (nvidia-smi is missing, and so is libcuda.so.1)")
device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
code = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
code = code or cuda.cuDeviceGetName(name, len(name), device)
if code:
    sys.exit(f"nvidia-smi is missing, and libcuda.so.1 reports CUDA error {code}")
print(name.value.decode())
"""  # for `python -c`
GPU_NAME: Final = re.compile(r"\d+|GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # as -i takes it


class FirstGpu(NamedTuple):
    """The GPU that CUDA sees first, or why there is none."""

    description: str | None  # name, driver and memory, in the driver's words
    why_not: str | None


def why_no_gpu() -> str | None:
    """Why the driver offers no NVIDIA GPU. Returns None if it offers one."""
    return find_gpu().why_not


@cache
def find_gpu() -> FirstGpu:
    """Ask the driver once per process, which takes a second where nothing else uses the GPU."""
    try:
        return FirstGpu(_describe_gpu(), None)
    except LddganError as error:
        return FirstGpu(None, f"no NVIDIA GPU: {error}")


def _describe_gpu() -> str:
    """Name the GPU. Returns its name alone where nvidia-smi is missing, as in some containers.

    Raises LddganError.
    """
    refuse_hidden()
    if shutil.which(PROGRAM) is not None:
        return ask_driver("name,driver_version,memory.total")
    asked = finished((sys.executable, "-I", "-S", "-c", NAMING))
    if asked.returncode != 0:
        last_line = asked.stderr.strip().rpartition("\n")[2]
        raise LddganError(last_line or f"{PROGRAM} is missing, and libcuda.so.1 is broken")
    return asked.stdout.strip()


def ask_driver(fields: str) -> str:
    """Ask nvidia-smi about the GPU that CUDA sees first. Returns its own words.

    CUDA numbers the GPUs as nvidia-smi does if CUDA_DEVICE_ORDER is PCI_BUS_ID. Raises LddganError.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise LddganError(
            f"{PROGRAM} is missing, which comes with the NVIDIA driver; a container needs "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        )
    refuse_hidden()
    query = (f"--query-gpu={fields}", "--format=csv,noheader")
    asked = finished((program, *first_visible(), *query))
    if asked.returncode != 0 or not asked.stdout.strip():
        first_line = (asked.stdout + asked.stderr).strip().partition("\n")[0]
        raise LddganError(f"the driver says {first_line!r}")
    return asked.stdout.strip().splitlines()[0]


def refuse_hidden() -> None:
    """Raise LddganError if CUDA_VISIBLE_DEVICES leaves no GPU."""
    if first_of(VISIBLE) in ("", "-1"):
        raise LddganError(f"{VISIBLE}={os.environ[VISIBLE]} hides every GPU")


def finished(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program that asks the driver. Raises LddganError if it does not end in time."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=DRIVER_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise LddganError(f"the driver did not answer within {DRIVER_SECONDS} s") from error


def first_visible() -> tuple[str, ...]:
    """nvidia-smi's options for the first GPU of CUDA_VISIBLE_DEVICES. Empty if it has none."""
    first = first_of(VISIBLE)
    return ("-i", first) if first and GPU_NAME.fullmatch(first) else ()


def first_of(variable: str) -> str | None:
    """The first entry of a list in the environment. Returns None if the variable is not set."""
    value = os.environ.get(variable)
    return None if value is None else value.partition(",")[0].strip()
