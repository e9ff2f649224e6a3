"""Images in an LMDB, as the LSUN and CelebA-HQ communities keep them."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from lddgan.data.decode import BadImage, NotEncoded, Pixels, decode
from lddgan.data.sources import Source, opened
from lddgan.errors import BadInput
from lddgan.extras import require
from lddgan.names import Convert

FILE: Final = "data.mdb"  # in a folder that is an LMDB


class Lmdb(Source):
    """Encoded images under any keys, in their order, or raw RGB of square images.

    Raises BadInput if the file is damaged, empty or cut short (reading it would end the process),
    or if of the keys 0, 1, 2, ... some are missing.
    """

    def __init__(self, path: Path, convert: Convert = "strict") -> None:
        environment = opened(path, open_environment)
        import lmdb

        try:
            with environment.begin() as transaction:
                keys = list(transaction.cursor().iternext(values=False))
        except lmdb.Error as error:
            raise BadInput(f"{path} is damaged ({error}); copy or download it again") from error
        check_keys(path, keys)
        super().__init__(path, keys, convert)

    def name(self, index: int) -> str:
        return f"key {self.names[index].decode(errors='backslashreplace')} in {self.path}"

    def read(self, index: int) -> Pixels:
        environment = opened(self.path, open_environment)
        import lmdb

        try:
            with environment.begin() as transaction:
                data = transaction.get(self.names[index])
        except lmdb.Error as error:
            raise BadImage(f"cannot be read ({error})") from error
        if data is None:
            raise BadImage("is missing")
        return pixels_of(data, self.convert, self.remarks)


def is_lmdb(file: Path) -> bool:
    """Whether a file begins as an LMDB: with a header of 16 bytes and a magic number."""
    with file.open("rb") as stream:
        return stream.read(20)[16:] == struct.pack("=I", 0xBEEFC0DE)


def check_keys(path: Path, keys: Sequence[bytes]) -> None:
    """Raise BadInput if there are no keys, or if they are numbers from 0 with gaps."""
    if not keys:
        raise BadInput(f"{path} is an LMDB without entries")
    numbers = {int(key) for key in keys} if all(key.isdigit() for key in keys) else {0}
    missing = max(numbers) + 1 - len(numbers)
    if 0 in numbers and missing:
        known = f"{path} has keys from 0 to {max(numbers)}"
        raise BadInput(f"{known}, but {missing:,} of these are missing; copy or download it again")


def pixels_of(data: bytes, convert: Convert, remarks: set[str]) -> Pixels:
    """An encoded image, or the raw RGB of a square one -> [H,W,3]. Raises BadImage."""
    try:
        return decode(data, convert, remarks)
    except NotEncoded:
        side = math.isqrt(len(data) // 3)
        if len(data) != 3 * side**2:
            raise
        return np.frombuffer(data, np.uint8).reshape(side, side, 3)


def open_environment(path: Path) -> Any:
    """Open an LMDB for reading. Raises BadInput if it is none, or is cut short."""
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
        has = f"it has {file.stat().st_size:,} bytes and says that it has {needed:,}"
        raise BadInput(f"{file} is cut short: {has}; copy or download it again")
    return environment
