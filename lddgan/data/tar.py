"""Image files in a tar archive."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from lddgan.data.decode import BadImage, Pixels, decode
from lddgan.data.listing import why_passed_over
from lddgan.data.sources import Source
from lddgan.errors import BadInput
from lddgan.names import Convert

Members = dict[str, tuple[int, int]]  # first byte of each, and number of bytes


class Tar(Source):
    """Image files in a tar archive that is not compressed, sorted by path."""

    def __init__(
        self, path: Path, members: Members, passed_over: Counter[str], convert: Convert
    ) -> None:
        names = []
        for name, place in members.items():
            if why := why_passed_over(name, partial(open_part, path, *place)):
                passed_over[why] += 1
            else:
                names.append(name)
        super().__init__(path, sorted(names), convert)
        self.places = np.array([members[name] for name in self.names], np.int64)
        self.passed_over += passed_over

    def read(self, index: int) -> Pixels:
        first, count = self.places[index].tolist()
        try:
            data = open_part(self.path, first, count).getvalue()
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror})") from error
        if len(data) < count:
            raise BadImage("is cut short")
        return decode(data, self.convert, self.remarks)


def open_part(path: Path, first: int, count: int) -> io.BytesIO:
    with path.open("rb") as file:
        file.seek(first)
        return io.BytesIO(file.read(count))


def is_tar(path: Path) -> bool:
    """Whether a file is a tar archive that is not compressed."""
    with path.open("rb") as file:
        return file.read(262)[257:] == b"ustar"


def members_of(path: Path) -> tuple[Members, Counter[str]]:
    """Where each file in a tar archive lies, and what else is in it, by reason.

    Raises BadInput if the archive is damaged or cut short.
    """
    found: Members = {}
    passed_over = Counter[str]()
    try:
        with tarfile.open(path, "r:") as archive, path.open("rb") as file:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                place = (member.offset_data, member.size) if member.isreg() else None
                if member.islnk():  # a hard link: a file under another name
                    place = found.get(member.linkname)
                if place is not None and not member.issparse():
                    passed_over["earlier files of the same name"] += member.name in found
                    found[member.name] = place
                elif not member.isdir():
                    passed_over["links" if member.issym() else "no plain files"] += 1
            file.seek(archive.offset)
            if file.read(512) != bytes(512):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"damaged or cut at byte {archive.offset:,}")
    except (tarfile.TarError, OSError) as error:
        raise BadInput(f"{path} is no whole tar archive ({error}); download it again") from error
    return found, passed_over
