"""CIFAR-10 as its authors give it: for Python or in binary, packed or unpacked."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from lddgan.data.decode import UNREADABLE, Pixels
from lddgan.data.sources import Source
from lddgan.errors import BadInput

BATCHES: Final = tuple(f"data_batch_{number}" for number in range(1, 6))
FOLDERS: Final = ("cifar-10-batches-py", "cifar-10-batches-bin")  # as the archives unpack
BINARY: Final = ".bin"  # suffix of binary batches
MOST_MEMBERS: Final = 20  # of an archive that are looked at; CIFAR-10's has 9
RECORD: Final = 1 + 3 * 32 * 32  # bytes of a binary batch's image: label, red, green, blue
BAD_PICKLE: Final = (pickle.UnpicklingError, LookupError, TypeError, AttributeError, *UNREADABLE)


class Cifar10(Source):
    """The training images in batches `data`, in memory. Raises BadInput if one lacks or is bad."""

    def __init__(self, path: Path, data: Mapping[str, bytes]) -> None:
        if missing := [name for name in BATCHES if name not in data]:
            raise BadInput(f"{path} is not the whole of CIFAR-10: {', '.join(missing)} is missing")
        self.images = np.concatenate([planes(f"{name} of {path}", data[name]) for name in BATCHES])
        super().__init__(path, range(len(self.images)))

    def name(self, index: int) -> str:
        return f"image {index} of {self.path}"

    def read(self, index: int) -> Pixels:
        return self.images[index].transpose(1, 2, 0)


def in_folder(path: Path) -> dict[str, bytes]:
    """Read the batches in a folder, by name."""
    files = ((name, path / f"{name}{suffix}") for name in BATCHES for suffix in ("", BINARY))
    return {name: file.read_bytes() for name, file in files if file.is_file()}


def in_archive(path: Path) -> dict[str, bytes]:
    """Read the batches in a tar archive, by name. Raises BadInput if it is damaged."""
    try:
        with tarfile.open(path) as archive:
            found: dict[str, bytes] = {}
            for member in islice(archive, MOST_MEMBERS):
                file = archive.extractfile(member)
                name = Path(member.name).name.removesuffix(BINARY)
                if file is not None and name in BATCHES:
                    found[name] = file.read()
            return found
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise BadInput(f"{path} is no whole tar archive ({error}); download it again") from error


def planes(name: str, data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A batch's bytes -> [N,3,32,32], running no code of the file. Raises BadInput."""
    try:
        if data[:1] == b"\x80":  # a pickle of protocol 2 or later
            values = OnlyArrays(io.BytesIO(data), encoding="bytes").load()[b"data"]
        else:
            values = np.frombuffer(data, np.uint8).reshape(-1, RECORD)[:, 1:]
    except BAD_PICKLE as error:
        raise BadInput(f"{name} is no batch of CIFAR-10 ({error}); download it again") from error
    is_bytes = isinstance(values, np.ndarray) and values.dtype == np.uint8 and values.size
    if not is_bytes or values.shape[1:] != (RECORD - 1,):
        raise BadInput(f"{name} is no batch of CIFAR-10: it holds no bytes of images")
    return values.reshape(-1, 3, 32, 32)


class OnlyArrays(pickle.Unpickler):
    """Builds numpy arrays and plain data; refuses anything else."""

    ALLOWED: Final = (
        *("numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"),
        "_codecs.encode",  # how Python 3 writes bytes
    )

    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy.core.multiarray":  # its name before numpy 2
            module = "numpy._core.multiarray"
        if f"{module}.{name}" not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)
