"""The timing cache: what earlier builds measured, kept beside the plans."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lddgan.files import atomic_write, sha256_of_bytes
from lddgan.progress import Log

HEX_DIGEST: Final = 64  # letters of the sha256 before the content


def read_timing_cache(path: Path, log: Log) -> bytes | None:
    """Read the timing cache. Returns None if it is missing or damaged (damage is logged)."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log(f"{path} is left aside: {error.strerror}")
        return None
    if sha256_of_bytes(content[HEX_DIGEST:]).encode() != content[:HEX_DIGEST]:
        log(f"{path} is left aside: it is damaged")
        return None
    return content[HEX_DIGEST:]


def save_timing_cache(path: Path, content: bytes | None) -> None:
    if content is not None:
        atomic_write(path, sha256_of_bytes(content).encode() + content)
