"""Asking the NVIDIA driver, through nvidia-smi: no CUDA library is loaded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Final

from lddgan.errors import LddganError

DRIVER_SECONDS: Final = 20  # after which a driver that does not answer counts as broken
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
GPU_NAME: Final = re.compile(r"\d+|GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # as -i takes it


def why_no_gpu() -> str | None:
    """Why there is no NVIDIA GPU to use, asked of the driver and not of a library."""
    try:
        ask_driver("name")
    except LddganError as error:
        return f"no NVIDIA GPU: {error}"
    return None


def ask_driver(fields: str) -> str:
    """What nvidia-smi says of the GPU that CUDA sees first, in its own words.

    CUDA numbers the GPUs as nvidia-smi does if CUDA_DEVICE_ORDER is PCI_BUS_ID.
    Raises LddganError.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise LddganError("no driver is installed here (nvidia-smi is missing)")
    if first_of(VISIBLE) in ("", "-1"):
        raise LddganError(f"{VISIBLE}={os.environ[VISIBLE]} hides every GPU")
    try:
        asked = subprocess.run(
            [program, *first_visible(), f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=DRIVER_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise LddganError(f"the driver did not answer within {DRIVER_SECONDS} s") from error
    if asked.returncode != 0 or not asked.stdout.strip():
        first_line = (asked.stdout + asked.stderr).strip().partition("\n")[0]
        raise LddganError(f"the driver says {first_line!r}")
    return asked.stdout.strip().splitlines()[0]


def first_visible() -> tuple[str, ...]:
    """nvidia-smi's words for the first GPU of CUDA_VISIBLE_DEVICES; none if it has none for it."""
    first = first_of(VISIBLE)
    return ("-i", first) if first and GPU_NAME.fullmatch(first) else ()


def first_of(variable: str) -> str | None:
    """The first entry of a list in the environment; None where the variable is not set."""
    value = os.environ.get(variable)
    return None if value is None else value.partition(",")[0].strip()
