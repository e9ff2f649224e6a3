"""CIFAR-10 as its authors give it: for Python or in binary, packed or unpacked."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from lddgan.data.decode import UNREADABLE, Pixels
from lddgan.data.foreign import why_not_read
from lddgan.data.sources import Source
from lddgan.errors import BadInput

BATCHES: Final = tuple(f"data_batch_{number}" for number in range(1, 6))
FOLDERS: Final = ("cifar-10-batches-py", "cifar-10-batches-bin")  # as the archives unpack
BINARY: Final = ".bin"  # suffix of binary batches
RECORD: Final = 1 + 3 * 32 * 32  # bytes of a binary batch's image: label, red, green, blue
BAD_PICKLE: Final = (pickle.UnpicklingError, LookupError, TypeError, AttributeError, *UNREADABLE)


class Cifar10(Source):
    """The training images, in memory. Raises BadInput if a batch is missing or damaged."""

    def __init__(self, path: Path) -> None:
        data = in_folder(path) if path.is_dir() else in_archive(path)
        if not data:
            raise BadInput(why_not_read(path))
        missing = [name for name in BATCHES if name not in data]
        if missing:
            raise BadInput(f"{path} is not the whole of CIFAR-10: {', '.join(missing)} is missing")
        self.images = np.concatenate([planes(f"{name} of {path}", data[name]) for name in BATCHES])
        super().__init__(path, range(len(self.images)))

    def name(self, index: int) -> str:
        return f"image {index} of {self.path}"

    def read(self, index: int) -> Pixels:
        return self.images[index].transpose(1, 2, 0)


def is_cifar10(path: Path) -> bool:
    return any((path / f"{BATCHES[0]}{suffix}").is_file() for suffix in ("", BINARY))


def in_folder(path: Path) -> dict[str, bytes]:
    """Read the batches in a folder, by name."""
    files = {file.name.removesuffix(BINARY): file for file in path.iterdir() if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if name in BATCHES}


def in_archive(path: Path) -> dict[str, bytes]:
    """Read the batches in an archive, by name. Raises BadInput if it is damaged."""
    try:
        with tarfile.open(path) as archive:
            found: dict[str, bytes] = {}
            for number, member in enumerate(archive):
                if number > len(BATCHES) + 5 and not found:  # no use in unpacking the rest
                    break
                file = archive.extractfile(member)
                name = Path(member.name).name.removesuffix(BINARY)
                if file is not None and name in BATCHES:
                    found[name] = file.read()
            return found
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise BadInput(f"{path} is no whole archive ({error}); download it again") from error


def planes(name: str, data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A batch's bytes -> [N,3,32,32]. Raises BadInput."""
    if data[:1] == b"\x80":  # a pickle of protocol 2 or later
        values = unpickle(name, data)
    elif len(data) % RECORD == 0 and data:
        values = np.frombuffer(data, np.uint8).reshape(-1, RECORD)[:, 1:]
    else:
        raise BadInput(f"{name} is no batch of CIFAR-10: {len(data):,} bytes")
    return values.reshape(-1, 3, 32, 32)


class OnlyArrays(pickle.Unpickler):
    """Builds numpy arrays and plain data; refuses anything else."""

    ALLOWED: Final = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),  # how Python 3 writes bytes
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if module == "numpy.core.multiarray":  # its name before numpy 2
            module = "numpy._core.multiarray"
        return super().find_class(module, name)


def unpickle(name: str, data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Unpickle the values [N,3072] of a batch, running no code of the file. Raises BadInput."""
    try:
        values = OnlyArrays(io.BytesIO(data), encoding="bytes").load()[b"data"]
    except BAD_PICKLE as error:
        raise BadInput(f"{name} is no batch of CIFAR-10 ({error}); download it again") from error
    is_bytes = isinstance(values, np.ndarray) and values.dtype == np.uint8
    if not is_bytes or values.shape[1:] != (RECORD - 1,):
        raise BadInput(f"{name} is no batch of CIFAR-10: it holds no bytes of images")
    return values
