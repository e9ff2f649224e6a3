"""Where training images lie: a folder, a zip file, CIFAR-10's archives, an LMDB."""

from __future__ import annotations

import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from lddgan.data.decode import BadImage, Pixels, decode, fit
from lddgan.data.listing import BAD_MEMBER, describe_passed_over, list_images, why_passed_over
from lddgan.errors import BadInput
from lddgan.names import Convert
from lddgan.workers import read_ahead

ENCRYPTED: Final = 1  # bit of a zip file's member
IMAGES_AT_ONCE: Final = 64  # that a process checks
T = TypeVar("T")


class Source(ABC):
    """Named images that are read by index. A copy in another process opens its own handles."""

    def __init__(self, path: Path, names: Sequence[Any], convert: Convert = "strict") -> None:
        self.path, self.names, self.convert = path, names, convert
        self.passed_over = Counter[str]()  # files beside the images, by reason
        self.notes: list[str] = []  # sentences that people should read
        self.remarks = set[str]()  # on the images that were read

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The name of an image, for people."""
        return f"{self.names[index]} in {self.path}"

    @abstractmethod
    def read(self, index: int) -> Pixels:
        """Read an image [H,W,3] of any size. Raises BadImage."""

    def told(self) -> list[str]:
        """What people should know before they train: the number of images, what is left out."""
        left = describe_passed_over(self.passed_over)
        gifs = sum(str(name).lower().endswith(".gif") for name in self.names)
        first = [f"of {gifs:,} .gif files the first picture is taken"] if gifs else []
        return [f"{self.path}: {len(self):,} images{left}", *first, *self.notes]


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

    def __init__(self, path: Path, convert: Convert = "strict") -> None:
        super().__init__(path, [], convert)
        self.names = list_images(path, self.passed_over)

    def name(self, index: int) -> str:
        return str(self.path / self.names[index])

    def read(self, index: int) -> Pixels:
        try:
            data = (self.path / self.names[index]).read_bytes()
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror})") from error
        return decode(data, self.convert, self.remarks)


class Zip(Source):
    """Image files in a zip archive, sorted by path. Raises BadInput if it is encrypted."""

    def __init__(self, path: Path, convert: Convert = "strict") -> None:
        super().__init__(path, [], convert)
        archive = opened(path, open_zip)
        files = [info for info in archive.infolist() if info.filename[-1:] != "/"]
        if any(info.flag_bits & ENCRYPTED for info in files):
            raise BadInput(f"{path} is encrypted; unpack it with its password, and give the folder")
        names: list[str] = []
        for info in {info.filename: info for info in files}.values():
            name = info.filename.replace("\\", "/")  # as some programs on Windows write it
            why = why_passed_over(name, partial(archive.open, info))
            if stat.S_ISLNK(info.external_attr >> 16):
                why = "links"
            if why:
                self.passed_over[why] += 1
            else:
                names.append(info.filename)
        self.names = sorted(names)
        if again := len(files) - len({info.filename for info in files}):
            self.passed_over["earlier files of the same name"] = again

    def read(self, index: int) -> Pixels:
        try:
            data = opened(self.path, open_zip).read(self.names[index])
        except BAD_MEMBER as error:
            raise BadImage(f"cannot be unpacked ({error})") from error
        return decode(data, self.convert, self.remarks)


def open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{path} is no whole zip archive ({error}); download it again") from error


# ---- checking ----


class Look(NamedTuple):
    """What was found when an image was looked at."""

    name: str
    why: str | None  # it cannot be trained on, in words that follow its name
    kind: str | None  # of what is wrong
    remarks: frozenset[str]  # what people should know of a good one


def check_images(source: Source, size: int, processes: int) -> Iterator[Look]:
    """Yield for each image of a source whether one of `size` can be made of it."""
    parts = range(0, len(source), IMAGES_AT_ONCE)
    with closing(read_ahead(partial(check_part, source, size), parts, processes)) as checked:
        for part in checked:
            yield from part


def check_part(source: Source, size: int, first: int) -> list[Look]:
    last = min(first + IMAGES_AT_ONCE, len(source))
    return [check(source, size, index) for index in range(first, last)]


def check(source: Source, size: int, index: int) -> Look:
    """Look at an image: read it and fit it to `size`."""
    source.remarks.clear()
    try:
        fit(source.read(index), size)
    except BadImage as error:
        return Look(source.name(index), str(error), error.kind, frozenset())
    return Look(source.name(index), None, None, frozenset(source.remarks))
