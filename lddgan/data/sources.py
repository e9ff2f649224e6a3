"""Where training images lie: a folder, a zip file, CIFAR-10's archives, an LMDB."""

from __future__ import annotations

import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from lddgan.data.decode import BadImage, Pixels, decode, fit
from lddgan.errors import BadInput
from lddgan.progress import start_pool

SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
T = TypeVar("T")


class Source(ABC):
    """Named images that are read by index. A copy in another process opens its own handles."""

    def __init__(self, path: Path, names: Sequence[Any]) -> None:
        self.path, self.names = path, names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The name of an image, for people."""
        return f"{self.names[index]} in {self.path}"

    @abstractmethod
    def read(self, index: int) -> Pixels:
        """Read an image [H,W,3] of any size. Raises BadImage."""


OPENED: dict[Path, tuple[int, Any]] = {}  # handles, and the process that opened each


def opened(path: Path, open_it: Callable[[Path], T]) -> T:
    """This process's handle of a file; a forked process closes the inherited one."""
    process, handle = OPENED.get(path, (0, None))
    if process != os.getpid():
        if handle is not None:
            handle.close()
        OPENED[path] = os.getpid(), open_it(path)
    found: T = OPENED[path][1]
    return found


class Folder(Source):
    """Image files in a folder and all folders in it, sorted by path."""

    def __init__(self, path: Path) -> None:
        files = (
            str((Path(folder) / name).relative_to(path))
            for folder, _, names in os.walk(path)
            for name in names
            if is_image(name)
        )
        super().__init__(path, sorted(files))

    def name(self, index: int) -> str:
        return str(self.path / self.names[index])

    def read(self, index: int) -> Pixels:
        try:
            data = (self.path / self.names[index]).read_bytes()
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror})") from error
        return decode(data)


class Zip(Source):
    """Image files in a zip archive, sorted by path."""

    def __init__(self, path: Path) -> None:
        names = opened(path, open_zip).namelist()
        super().__init__(path, sorted(name for name in names if is_image(name)))

    def read(self, index: int) -> Pixels:
        try:
            data = opened(self.path, open_zip).read(self.names[index])
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise BadImage(f"cannot be unpacked ({error})") from error
        return decode(data)


def open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise BadInput(f"{path} is no whole zip archive ({error}); download it again") from error


def is_image(name: str) -> bool:
    """Whether a file is an image by its suffix; macOS leaves .name files beside images."""
    return name.lower().endswith(SUFFIXES) and not Path(name).name.startswith(".")


# ---- checking ----


def check_images(source: Source, size: int, processes: int) -> Iterator[str | None]:
    """Yield for each image of a source why none of `size` can be made of it, or None."""
    with start_pool(processes) as pool:
        yield from pool.map(partial(check, source, size), range(len(source)), chunksize=64)


def check(source: Source, size: int, index: int) -> str | None:
    """Name an image and say why it cannot be trained on. Returns None if it can."""
    try:
        fit(source.read(index), size)
    except BadImage as error:
        return f"{source.name(index)} {error}"
    return None
