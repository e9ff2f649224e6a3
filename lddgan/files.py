"""Files and folders that are whole at their final name, and the right to write them."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from lddgan.errors import BadInput, LddganError
from lddgan.progress import Log

LOCK_MODE: Final = 0o666  # a lock holds nothing, and any user of the folder may have to take it
LOCK_POLL_SECONDS: Final = 0.2


def sha256_of_bytes(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the disk's errors while writing `path` into LddganError."""
    try:
        yield
    except OSError as error:
        raise LddganError(f"cannot write {path}: {error.strerror}") from error


def atomic_write(path: Path, data: Any) -> Path:
    """Write `data` to `path` so that it is there whole or not at all.

    Raises LddganError (disk full, read-only folder, ...), leaving what was there untouched.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:  # Ctrl-C too leaves nothing behind
            temporary.unlink(missing_ok=True)
    return path


def refuse_used(folder: Path) -> None:
    """Raise BadInput unless `folder` is empty or does not exist."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} exists and is not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder} holds other files; choose an empty or a new folder")


@contextmanager
def atomic_folder(folder: Path, *, replaces: bool = True) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, which takes its name if the body succeeds.

    If `replaces`, a folder that is already there is moved away first, and back if the renaming
    fails; otherwise it must be empty.  A killed process leaves temporary folders; `sweep` clears
    them up.  Raises LddganError for the disk's errors, those of the body included.
    """
    place = folder.absolute()
    temporary, old = _temporary(place), _temporary(place)
    with writing(folder):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            _sync(temporary)
            try:
                if replaces and place.exists():
                    os.replace(place, old)
                os.replace(temporary, place)
            finally:
                if old.exists() and not place.exists():
                    os.replace(old, place)
            _sync(place.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if place.exists():
                shutil.rmtree(old, ignore_errors=True)


@contextmanager
def build_lock(folder: Path, name: str, log: Log) -> Iterator[None]:
    """Hold the right to build `folder / name`; the system takes it back from a killed process.

    Raises LddganError if the lock cannot be written.
    """
    lock = _lock(folder, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log(f"another process is building {folder / name}; waiting until it is done")
            lock.acquire(poll_interval=LOCK_POLL_SECONDS)
    except OSError as error:
        raise LddganError(f"cannot lock {lock.lock_file}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def sweep(folder: Path, last: str, held: str | None = None) -> None:
    """Clear up the temporary folders of killed processes: those whose lock nobody else holds.

    One that holds the file `last`, which is written last, is whole and takes its final name if
    nothing else has that.  The others are removed.  `held` is the name whose lock this process
    holds.
    """
    for path in folder.glob(".*.tmp"):
        name = path.name[1:].rsplit(".", 2)[0]
        if name == held:
            _clear(path, folder / name, last)
            continue
        with suppress(Timeout, OSError), _lock(folder, name).acquire(timeout=0):
            _clear(path, folder / name, last)


def _clear(left: Path, target: Path, last: str) -> None:
    if (left / last).is_file() and not target.exists():
        with suppress(OSError):
            os.replace(left, target)
    else:
        shutil.rmtree(left, ignore_errors=True)


def _lock(folder: Path, name: str) -> FileLock:
    return FileLock(folder / f".{name}.lock", mode=LOCK_MODE)


def _temporary(place: Path) -> Path:
    return place.parent / f".{place.name}.{secrets.token_hex(4)}.tmp"


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
