"""Files and folders that are whole at their final name, and the right to write them."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lddgan.errors import BadInput, LddganError
from lddgan.progress import Log


def sha256_of_bytes(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the disk's errors while writing `path` into LddganError."""
    try:
        yield
    except OSError as error:
        raise LddganError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def utf8_name(path: Path) -> Iterator[str]:
    """Yield `path`, or if it is not UTF-8, which some libraries ask for, another name of the same.

    That is Linux' link to an open file: other systems have no such paths.  Raises OSError.
    """
    if os.fsencode(path).decode(errors="ignore") == str(path):
        yield str(path)
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def atomic_write(path: Path, data: Any) -> Path:
    """Write `data` to `path` so that it is there whole or not at all.

    Raises LddganError (disk full, read-only folder, ...), leaving what was there untouched.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path, "")
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
    temporary, old = _beside(place, ".tmp"), _beside(place, ".tmp")
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
            lock.acquire()
        except Timeout:
            log(f"another process is building {folder / name}; waiting until it is done")
            lock.acquire(timeout=-1, poll_interval=0.2)
    except OSError as error:
        raise LddganError(f"cannot lock {lock.lock_file}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def sweep(folder: Path, last: str, held: str | None = None) -> None:
    """Clear up the temporary folders of killed processes: those whose lock nobody else holds.

    One that holds the file `last`, which is written last, is whole and takes its final name if
    nothing else has that.  The others are removed.  This process holds the lock of `held`.
    """
    for path in folder.glob(".*.tmp"):
        name = path.name[1:].rsplit(".", 2)[0]
        lock = nullcontext() if name == held else _lock(folder, name)
        with suppress(OSError), lock:
            if (path / last).is_file() and not (folder / name).exists():
                os.replace(path, folder / name)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _lock(folder: Path, name: str) -> FileLock:
    # It holds nothing, and any user of the folder may have to take it.
    return FileLock(folder / f".{name}.lock", timeout=0, mode=0o666)


def _beside(place: Path, suffix: str) -> Path:
    name = place.name if len(os.fsencode(place.name)) < 240 else ""  # of 255 bytes at most
    return place.parent / f".{name}.{secrets.token_hex(4)}{suffix}"


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
