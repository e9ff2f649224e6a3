"""Images -> bodies of answers: one image, a grid, or a stream of many as they are made."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import numpy as np
from PIL import Image

from engine.serving.batcher import Pixels
from lddgan.pictures import png

PICTURES: Final = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg"}
ARCHIVES: Final = {
    "zip": "application/zip",
    "tar": "application/x-tar",
    "npy": "application/octet-stream",
}
WEBP: Final = {"lossless": True, "method": 0, "quality": 0}  # the fastest of the exact ones
JPEG: Final = {"quality": 95, "subsampling": 0}
EARLIEST: Final = (1980, 1, 1, 0, 0, 0)  # of a ZIP: the same images are the same bytes
READABLE: Final = 0o644

Encode = Callable[[Pixels, str], Awaitable[bytes]]


def encoded(image: Pixels, form: str) -> bytes:
    """uint8 [H,W,3] -> a file of a form of PICTURES; png and webp keep every value."""
    if form == "png":
        return png(image)
    buffer = io.BytesIO()
    if form == "webp":
        Image.fromarray(image).save(buffer, "WEBP", **WEBP)
    else:
        Image.fromarray(image).save(buffer, "JPEG", **JPEG)
    return buffer.getvalue()


async def npy_parts(images: AsyncIterator[Pixels], count: int) -> AsyncIterator[bytes]:
    """An .npy file, uint8 [count,H,W,3]."""
    begun = False
    async for image in images:
        if not begun:
            header = io.BytesIO()
            fields = {"descr": "|u1", "fortran_order": False, "shape": (count, *image.shape)}
            np.lib.format.write_array_header_1_0(header, fields)
            yield header.getvalue()
            begun = True
        yield image.tobytes()


async def tar_parts(
    images: AsyncIterator[Pixels], first: int, encode: Encode
) -> AsyncIterator[bytes]:
    """A tar archive of PNGs named by their indices."""
    index = first
    async for image in images:
        data = await encode(image, "png")
        member = tarfile.TarInfo(f"{index:06d}.png")
        member.size = len(data)
        header = member.tobuf(tarfile.USTAR_FORMAT)
        yield header + data + bytes(-len(data) % tarfile.BLOCKSIZE)
        index += 1
    yield bytes(2 * tarfile.BLOCKSIZE)


async def zip_parts(
    images: AsyncIterator[Pixels], first: int, encode: Encode
) -> AsyncIterator[bytes]:
    """A ZIP archive of PNGs named by their indices, stored: they are compressed already."""
    sink = Sink()
    index = first
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        async for image in images:
            member = zipfile.ZipInfo(f"{index:06d}.png", EARLIEST)
            member.create_system, member.external_attr = 3, READABLE << 16  # Unix
            archive.writestr(member, await encode(image, "png"))
            yield sink.taken()
            index += 1
    yield sink.taken()


class Sink(io.RawIOBase):
    """A file without a place to go back to: what was written is taken away piece by piece."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        part = bytes(data)  # type: ignore[call-overload]
        self.parts.append(part)
        return len(part)

    def taken(self) -> bytes:
        data = b"".join(self.parts)
        self.parts.clear()
        return data
