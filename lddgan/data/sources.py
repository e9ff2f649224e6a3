"""Where training images lie: a folder, a zip file, CIFAR-10's archives, an LMDB."""

from __future__ import annotations

import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from lddgan.data.decode import BadImage, Pixels, decode
from lddgan.errors import BadInput

SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Handle(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=Handle)


class Source(ABC):
    """N images that are read by index. A copy in another process opens its own handles."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """Of an image, for people."""

    @abstractmethod
    def read(self, index: int) -> Pixels:
        """An image [H,W,3] of any size. Raises BadImage."""


class PerProcess(Generic[T]):
    """A handle that every process opens for itself."""

    def __init__(self, open_it: Callable[[], T]) -> None:
        self.open_it = open_it
        self.process: int | None = None
        self.handle: T | None = None

    def get(self) -> T:
        if self.handle is not None and self.process != os.getpid():
            self.handle.close()  # this process's copy of what its parent had opened
            self.handle = None
        if self.handle is None:
            self.process, self.handle = os.getpid(), self.open_it()
        return self.handle

    def __getstate__(self) -> dict[str, Any]:
        return {"open_it": self.open_it, "process": None, "handle": None}


class Folder(Source):
    """Image files in a folder and all folders in it, sorted by path."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.names = sorted(
            str((Path(folder) / name).relative_to(path))
            for folder, _, names in os.walk(path)
            for name in names
            if is_image(name)
        )

    def __len__(self) -> int:
        return len(self.names)

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
        super().__init__(path)
        self.archive = PerProcess(partial(open_zip, path))
        self.names = sorted(name for name in self.archive.get().namelist() if is_image(name))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return f"{self.names[index]} in {self.path}"

    def read(self, index: int) -> Pixels:
        try:
            data = self.archive.get().read(self.names[index])
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise BadImage(f"cannot be unpacked ({error})") from error
        return decode(data)


def open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise BadInput(f"{path} is no whole zip archive ({error}); download it again") from error


def is_image(name: str) -> bool:
    """By its suffix; files that begin with a dot are none (macOS leaves such beside images)."""
    return name.lower().endswith(SUFFIXES) and not Path(name).name.startswith(".")
