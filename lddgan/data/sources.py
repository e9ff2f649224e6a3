"""Where training images lie: what every source has in common; a folder, a zip or tar archive."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import numpy as np

from lddgan.data.decode import BadImage, Pixels, decode
from lddgan.data.listing import BAD_MEMBER, describe_passed_over, list_images, why_passed_over
from lddgan.errors import BadInput
from lddgan.names import Convert

ENCRYPTED: Final = 1  # bit of a zip file's member
EARLIER: Final = "earlier files of the same name"
T = TypeVar("T")


class Source(ABC):
    """Named images that are read by index. A copy in another process opens its own handles."""

    convert: Convert = "strict"
    others: Sequence[str] = ()  # all files of an archive that holds no images

    def __init__(self, path: Path, names: Sequence[Any] = ()) -> None:
        self.path, self.names = path, names
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


class Files(Source):
    """Image files, sorted by path."""

    @abstractmethod
    def open(self, index: int) -> IO[bytes]:
        """Open an image. Raises BadImage, or one of BAD_MEMBER."""

    def read(self, index: int) -> Pixels:
        try:
            with self.open(index) as file:
                data = file.read()
        except BAD_MEMBER as error:
            why = getattr(error, "strerror", None) or error
            raise BadImage(f"cannot be read ({why})") from error
        return decode(data, self.convert, self.remarks)

    def choose(self, names: Collection[str], open_file: Callable[[str], IO[bytes]]) -> None:
        """Take the images among the files of an archive, and count the others."""
        chosen = []
        for name in names:
            path = name.replace("\\", "/")  # as some programs on Windows write it
            if why := why_passed_over(path, partial(open_file, name)):
                self.passed_over[why] += 1
            else:
                chosen.append(name)
        self.names, self.others = sorted(chosen), [] if chosen else list(names)


class Folder(Files):
    """Image files in a folder and all folders in it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.names = list_images(path, self.passed_over)

    def name(self, index: int) -> str:
        return str(self.path / self.names[index])

    def open(self, index: int) -> IO[bytes]:
        return (self.path / self.names[index]).open("rb")


class Zip(Files):
    """Image files in a zip archive. Raises BadInput if it is encrypted."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        archive = opened(path, open_zip)
        files = [info for info in archive.infolist() if info.filename[-1:] != "/"]
        if any(info.flag_bits & ENCRYPTED for info in files):
            raise BadInput(f"{path} is encrypted; unpack it with its password, and give the folder")
        last = {info.filename: info for info in files}
        links = {name for name, info in last.items() if stat.S_ISLNK(info.external_attr >> 16)}
        self.passed_over += {"links": len(links), EARLIER: len(files) - len(last)}
        self.choose([name for name in last if name not in links], archive.open)

    def open(self, index: int) -> IO[bytes]:
        return opened(self.path, open_zip).open(self.names[index])


def open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{path} is no whole zip archive ({error}); download it again") from error


# ---- tar archives ----

Place = tuple[int, int]  # first byte, and number of bytes


class Tar(Files):
    """Image files in a tar archive that is not compressed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        places = places_in(path, self.passed_over)
        self.choose(places, lambda name: open_part(path, *places[name]))
        self.places = np.array([places[name] for name in self.names], np.int64)  # [N,2]

    def open(self, index: int) -> IO[bytes]:
        return open_part(self.path, *self.places[index].tolist())


def open_part(path: Path, first: int, count: int) -> IO[bytes]:
    with path.open("rb") as file:
        file.seek(first)
        data = file.read(count)
    if len(data) < count:
        raise BadImage("is cut short")
    return io.BytesIO(data)


def is_tar(path: Path) -> bool:
    """Whether a file is a tar archive that is not compressed."""
    with path.open("rb") as file:
        if file.read(262)[257:] == b"ustar":
            return True
    try:  # an old one has no such mark, nor has an empty one
        tarfile.open(path, "r:").close()
    except (tarfile.TarError, OSError):
        return False
    return path.suffix == ".tar"  # a disk image, for one, may begin as an empty one


def places_in(path: Path, passed_over: Counter[str]) -> dict[str, Place]:
    """Where each file in a tar archive lies; counts what else is in it.

    Raises BadInput if the archive is damaged or cut short.
    """
    places: dict[str, Place] = {}
    try:
        with tarfile.open(path, "r:") as archive, path.open("rb") as file:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                place = (member.offset_data, member.size) if member.isreg() else None
                if member.islnk():  # a hard link: a file under another name
                    place = places.get(member.linkname)
                if place is not None and not member.issparse():
                    if member.name in places:
                        passed_over[EARLIER] += 1
                    places[member.name] = place
                elif not member.isdir():
                    passed_over["links" if member.issym() else "no plain files"] += 1
            file.seek(archive.offset)
            if file.read(512) != bytes(512):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"damaged or cut at byte {archive.offset:,}")
            while chunk := file.read(1 << 20):
                if chunk.count(0) < len(chunk):
                    after = f"more follows its end at byte {archive.offset:,}"
                    raise tarfile.ReadError(f"{after}; `tar -xif` unpacks joined archives")
    except (tarfile.TarError, OSError) as error:
        raise BadInput(f"{path} is no whole tar archive ({error}); download it again") from error
    return places
