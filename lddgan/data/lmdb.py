"""Images in an LMDB, as the LSUN and CelebA-HQ communities keep them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from lddgan.data.decode import BadImage, Pixels, decode
from lddgan.data.sources import Source, opened
from lddgan.errors import BadInput
from lddgan.extras import require

FILE = "data.mdb"  # in a folder that is an LMDB
ENCODED = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"P6")  # beginnings


class Lmdb(Source):
    """Encoded images under any keys, in their order, or raw RGB of square images.

    Raises BadInput for a file that is cut short: reading it would end the process.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with opened(path, open_environment).begin() as transaction:
            self.keys = list(transaction.cursor().iternext(values=False))

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, index: int) -> str:
        return f"key {self.keys[index].decode(errors='backslashreplace')} in {self.path}"

    def read(self, index: int) -> Pixels:
        with opened(self.path, open_environment).begin() as transaction:
            data = transaction.get(self.keys[index])
        if data is None:
            raise BadImage("is missing")
        return decode(data) if data.startswith(ENCODED) else raw(data)


def raw(data: bytes) -> Pixels:
    """Bytes of a square RGB image, row by row -> [S,S,3]. Raises BadImage."""
    side = math.isqrt(len(data) // 3)
    if not data or 3 * side**2 != len(data):
        raise BadImage(f"is neither an encoded image nor raw square RGB ({len(data)} bytes)")
    return np.frombuffer(data, np.uint8).reshape(side, side, 3)


def open_environment(path: Path) -> Any:
    """Open an LMDB for reading. Raises BadInput if it is none, or less than it says."""
    require("lmdb")
    import lmdb

    is_folder = path.is_dir()
    try:
        environment = lmdb.open(
            str(path), subdir=is_folder, readonly=True, lock=False, readahead=False, meminit=False
        )
    except lmdb.Error as error:
        raise BadInput(f"{path} cannot be opened as an LMDB: {error}") from error
    file = path / FILE if is_folder else path
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.stat().st_size < needed:
        raise BadInput(
            f"{file} is cut short: it has {file.stat().st_size:,} bytes and says that it has "
            f"{needed:,}; copy or download it again"
        )
    return environment
