"""Files and folders that are whole at their final name, and the right to write them."""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from filelock import FileLock, Timeout

from lddgan.errors import BadInput, LddganError
from lddgan.progress import Log

LOCK: Final = ".lddgan.lock"  # in a folder: held by the process that writes there
SUFFIX: Final = ".tmp"  # of what is not whole yet


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


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the name `path` if the body succeeds, and is gone otherwise.

    Where `path` is a link, the file takes the place of what that leads to.  Raises BadInput for a
    device or a pipe, LddganError (disk full, read-only folder, ...), also for the disk's errors of
    the body, leaving what was there untouched.
    """
    place = place_of(path)
    temporary = _temporary(place)
    with writing(path):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
        finally:  # Ctrl-C too leaves nothing behind
            temporary.unlink(missing_ok=True)


def atomic_write(path: Path, data: Any) -> Path:
    """Write `data` to `path` as `atomic_file`, whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)
    return path


def place_of(path: Path) -> Path:
    """The absolute path with all links followed, also where nothing is yet.

    Raises BadInput for `-`, a device, a pipe or a socket: no file or folder takes its place.
    """
    if str(path) == "-":
        raise BadInput("- is no path, and nothing is written to stdout; name a file or a folder")
    with suppress(OSError):  # asked once: another process may be replacing it
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise BadInput(f"{path} is a device, a pipe or a socket; name a file or a folder")
    return Path(os.path.realpath(path))


def check_file(path: Path) -> None:
    """Raise LddganError unless a file can be written at `path`. To be called before long work."""
    folder = place_of(path).parent
    if path.is_dir():
        raise BadInput(f"{path} is a folder; name a file")
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def refuse_used(folder: Path, *ours: str) -> None:
    """Raise BadInput unless `folder` holds no other names than `ours`, or does not exist."""
    place = place_of(folder)
    if place.is_file():
        raise BadInput(f"{folder} exists and is not a folder")
    names = os.listdir(place) if place.is_dir() else ()
    if foreign := sorted({*names} - {*ours}):
        told = f"{folder} holds other files ({foreign[0]})"
        raise BadInput(f"{told}; choose an empty or a new folder")


@contextmanager
def atomic_folder(folder: Path, *, replaces: bool = True) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, which takes its name if the body succeeds.

    If `replaces`, a folder that is already there is moved away first, and back if the renaming
    fails; otherwise it must be empty.  A link stays, as in `atomic_file`.  A killed process leaves
    temporary folders; `sweep` and `sole_writer` clear them up.  Raises LddganError for the disk's
    errors, those of the body included.
    """
    place = place_of(folder)
    temporary, old = _temporary(place), _temporary(place)
    with writing(folder):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            _sync(temporary)
            with in_turn(place):
                try:
                    if replaces and place.exists():
                        os.replace(place, old)
                    os.replace(temporary, place)
                finally:
                    if old.exists() and not place.exists():
                        os.replace(old, place)
                    shutil.rmtree(old, ignore_errors=True)
            _sync(place.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def sole_writer(path: Path, *, beside: bool = False) -> Iterator[None]:
    """Hold the right to write into the folder `path`, or (`beside`) to make that file or folder.

    The lock lies in the folder, or `beside` it, and goes with its holder; the system takes it back
    from a killed process, whose temporary files (`beside`: and folders) are cleared up.  Raises
    LddganError naming the process that has it, or if it cannot be written.
    """
    place = place_of(path)
    folder = place.parent if beside else place
    file = beside_of(place, ".lock") if beside else folder / LOCK
    name = glob.escape(beside_of(place, "").name) if beside else ".*"
    lock, is_new = _lock(file), not folder.exists()
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            told = f"{path} is being written by {_holder(file)}"
            raise LddganError(f"{told}; wait until it is done, or name another --out") from error
    try:
        with writing(path):
            if isinstance(lock, FileLock):  # without flock it is another, which names the process
                told = f"process {os.getpid()} on {platform.node()}"
                file.write_text(told, encoding="utf-8")
        for left in folder.glob(f"{name}.{'[0-9a-f]' * 8}{SUFFIX}"):
            if left.is_file():
                left.unlink()
            elif beside:  # in the folder it is of an export or an encoding, which may be at work
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        _release(lock)
        if is_new:
            with suppress(OSError):  # unless it holds something
                folder.rmdir()


@contextmanager
def in_turn(path: Path, log: Log | None = None) -> Iterator[None]:
    """Wait for the right to change `path`; the system takes it back from a killed process.

    It is held for a moment or, with a `log`, which is told of a wait, for as long as `path` takes
    to build.  Raises LddganError if the lock cannot be written.
    """
    file = beside_of(place_of(path), ".turn.lock" if log is None else ".lock")
    lock = _lock(file)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            if log is not None:
                log(f"another process is building {path}; waiting until it is done")
            lock.acquire(timeout=-1)
    try:
        yield
    finally:
        _release(lock)


def sweep(folder: Path, last: str, held: str | None = None) -> None:
    """Clear up the temporary folders of killed processes: those whose lock nobody else holds.

    One that holds the file `last`, which is written last, is whole and takes its final name if
    nothing else has that.  The others are removed.  This process holds the lock of `held`.
    """
    for path in folder.glob(f".*{SUFFIX}/"):
        name = path.name[1:].rsplit(".", 2)[0]
        lock = nullcontext() if name == held else _lock(folder / f".{name}.lock")
        with suppress(OSError), lock:
            if (path / last).is_file() and not (folder / name).exists():
                os.replace(path, folder / name)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _lock(file: Path) -> FileLock:
    return FileLock(file, timeout=0, mode=0o666)  # any user of the folder may have to take it


def _holder(file: Path) -> str:
    with suppress(OSError):  # Windows lets nobody read it
        for _ in range(10):  # it may have taken the lock just now
            if told := " ".join(file.read_text("utf-8", "replace").split()):
                return told
            time.sleep(0.1)
    return "another process"


def _release(lock: FileLock) -> None:
    with suppress(OSError):  # Windows keeps it
        os.unlink(lock.lock_file)  # who has opened it by then sees that it has no name
    lock.release()


def beside_of(place: Path, suffix: str) -> Path:
    """A hidden name beside `place`, which tells of it; of a name that is too long only a digest."""
    name, most = os.fsencode(place.name), 200  # bytes, of 255
    return place.with_name(f".{place.name if len(name) <= most else sha256_of_bytes(name)}{suffix}")


def _temporary(place: Path) -> Path:
    return beside_of(place, f".{secrets.token_hex(4)}{SUFFIX}")


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
