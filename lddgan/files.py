"""Files that are whole at their final name: temporary file beside it, fsync, rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lddgan.errors import LddganError


def sha256_of_bytes(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, data: Any) -> Path:
    """Write `data` to `path` so that it is there whole or not at all.

    Raises LddganError (disk full, read-only folder, ...), leaving what was there untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise LddganError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too leaves nothing behind
        os.unlink(temporary)
        if isinstance(error, OSError):
            raise LddganError(f"cannot write {path}: {error.strerror}") from error
        raise
    return path


@contextmanager
def atomic_folder(folder: Path, put: Callable[[Path, Path], None]) -> Iterator[Path]:
    """A temporary folder beside `folder`; if the body succeeds, `put(temporary, folder)` names it.

    Raises LddganError for the disk's errors, those of the body and of `put` included.
    """
    place = folder.absolute()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise LddganError(f"cannot write {folder}: {error.strerror}") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        put(temporary, place)
    except OSError as error:
        raise LddganError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
