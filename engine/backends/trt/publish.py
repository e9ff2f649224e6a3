"""One builder at a time, and folders that are whole at their final name."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from lddgan.errors import LddganError
from lddgan.files import atomic_write, sha256_of_bytes
from lddgan.progress import Log

LOCK_MODE: Final = 0o666  # a lock holds nothing, and any user of the folder may have to take it
WAIT_SECONDS: Final = 0.2  # between two looks at a lock
HEX_DIGEST: Final = 64  # letters of the sha256 before the content of a timing cache


@contextmanager
def build_lock(folder: Path, name: str, say: Log) -> Iterator[None]:
    """The right to build `name`; the operating system takes it back from a killed process."""
    path = folder / f".{name}.lock"
    lock = FileLock(path, mode=LOCK_MODE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process is building {folder / name}; waiting until it is done")
            lock.acquire(poll_interval=WAIT_SECONDS)
    except OSError as error:
        raise LddganError(f"cannot lock {path}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def publishing(folder: Path, name: str) -> Iterator[Path]:
    """A temporary folder in the store that takes `name` if the body succeeds.

    What is there under that name is moved away first, and back if the renaming fails; after a kill
    in between, `sweep` does that.
    """
    temporary, old = _temporary(folder, name), _temporary(folder, name)
    try:
        temporary.mkdir()
    except OSError as error:
        raise LddganError(f"cannot write {temporary}: {error.strerror}") from error
    try:
        yield temporary
        _replace(folder / name, temporary, old)
    except OSError as error:
        raise LddganError(f"cannot write {folder / name}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _replace(target: Path, temporary: Path, old: Path) -> None:
    _fsync(temporary)
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(temporary, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    _fsync(target.parent)


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(folder: Path, name: str) -> Path:
    return folder / f".{name}.{secrets.token_hex(4)}.tmp"


def sweep(folder: Path, last: str, held: str | None = None) -> None:
    """Clear up what killed builders left: temporary folders whose lock nobody else holds.

    One that holds the file `last`, which is written last, is whole; it takes its final name if
    nothing else has that.  The others are removed.  `held` is the name whose lock this process
    holds.
    """
    for path in folder.glob(".*.tmp"):
        name = path.name[1:].rsplit(".", 2)[0]
        if name == held:
            _clear(path, folder / name, last)
            continue
        lock = FileLock(folder / f".{name}.lock", mode=LOCK_MODE)
        with suppress(Timeout, OSError), lock.acquire(timeout=0):
            _clear(path, folder / name, last)


def _clear(left: Path, target: Path, last: str) -> None:
    if (left / last).is_file() and not target.exists():
        with suppress(OSError):
            os.replace(left, target)
    else:
        shutil.rmtree(left, ignore_errors=True)


def read_timing_cache(path: Path, say: Log) -> bytes | None:
    """What earlier builds measured; None if there is none, or, said, if it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        say(f"{path} is left aside: {error.strerror}")
        return None
    if sha256_of_bytes(content[HEX_DIGEST:]).encode() != content[:HEX_DIGEST]:
        say(f"{path} is left aside: it is damaged")
        return None
    return content[HEX_DIGEST:]


def save_timing_cache(path: Path, content: bytes | None) -> None:
    if content is not None:
        atomic_write(path, sha256_of_bytes(content).encode() + content)
