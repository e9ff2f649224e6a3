"""Asking the NVIDIA driver, through nvidia-smi: no CUDA library is loaded."""

from __future__ import annotations

import shutil
import subprocess
from typing import Final

from lddgan.errors import LddganError

DRIVER_SECONDS: Final = 20  # after which a driver that does not answer counts as broken


def why_no_gpu() -> str | None:
    """Why there is no NVIDIA GPU to use, asked of the driver and not of a library."""
    try:
        ask_driver("name")
    except LddganError as error:
        return f"no NVIDIA GPU: {error}"
    return None


def ask_driver(fields: str) -> str:
    """What nvidia-smi says of the first GPU, in its own words. Raises LddganError."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise LddganError("no driver is installed here (nvidia-smi is missing)")
    try:
        asked = subprocess.run(
            [program, f"--query-gpu={fields}", "--format=csv,noheader"],
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
