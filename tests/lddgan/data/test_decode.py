"""Images are decoded, resized and cropped; bad ones are named and replaced."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lddgan.data.images as images_module
from lddgan.data.check import check_images
from lddgan.data.decode import BadImage, decode, fit, open_image
from lddgan.data.images import ImageFiles, to_float
from lddgan.data.open_source import open_source
from lddgan.data.sources import Source
from lddgan.errors import BadInput
from tests.lddgan.data.support import PICTURES, encoded, picture


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def claim(width: int, height: int) -> bytes:
    """A PNG whose header says that it is of this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


BAD = {
    "is empty": b"",
    "is no image of a known format": b"<!doctype html>",
    "is damaged": encoded(PICTURES[0])[:900],
    "has the mode CMYK, not RGB": encoded(PICTURES[0], "JPEG", "CMYK"),
    "has the mode I;16, not RGB": encoded(PICTURES[0][..., 0].astype(np.uint16), "PNG", "I;16"),
    "has the mode P, not RGB": encoded(PICTURES[0], "PNG", "P"),
    "has the mode L, not RGB": encoded(PICTURES[0], "PNG", "L"),
    "has the mode RGBA, not RGB": encoded(PICTURES[0], "PNG", "RGBA"),
    "has more than 512 megapixels and may be an attack": claim(30000, 30000),
}


@pytest.mark.parametrize("said", BAD)
def test_a_bad_image_says_what_is_wrong(said: str) -> None:
    with pytest.raises(BadImage, match=said) as caught:
        decode(BAD[said])
    assert "\n" not in str(caught.value)


def test_photos_of_phones_are_not_too_large() -> None:
    with open_image(io.BytesIO(claim(16320, 12240))) as image:
        assert image.size == (16320, 12240)
    with pytest.raises(BadImage, match="megapixels"):
        open_image(io.BytesIO(claim(22650, 22650)))


@pytest.mark.parametrize(
    ("shape", "resized", "corner"),  # (width, height) and (left, top) by torchvision's rule
    [
        ((32, 32), (32, 32), (0, 0)),
        ((41, 32), (41, 32), (4, 0)),  # 9/2 is rounded to even
        ((32, 47), (32, 47), (0, 8)),  # and so is 15/2
        ((75, 64), (37, 32), (2, 0)),  # 32*75/64 is cut to a whole number
        ((90, 133), (32, 47), (0, 8)),
        ((200, 33), (193, 32), (80, 0)),
    ],
)
def test_fitting_resizes_the_shorter_side_and_takes_the_middle(
    shape: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]
) -> None:
    pixels = picture(3, *shape)
    left, top = corner
    image = Image.fromarray(pixels).resize(resized, Image.Resampling.BILINEAR)
    expected = np.asarray(image.crop((left, top, left + 32, top + 32)))
    assert np.array_equal(fit(pixels, 32), expected)


def test_an_image_that_is_too_small_is_not_enlarged() -> None:
    with pytest.raises(BadImage, match="is 40x31, smaller than 32x32"):
        fit(picture(0, 40, 31), 32)


def test_every_bad_image_of_a_source_is_listed(tmp_path: Path) -> None:
    for index, data in enumerate(BAD.values()):
        (tmp_path / f"{index}.png").write_bytes(data)
    (tmp_path / "good.png").write_bytes(encoded(PICTURES[0]))
    found = list(check_images(open_source(tmp_path), 32, processes=2))
    trained_on = ImageFiles(open_source(tmp_path), 32).read([0], [False])
    good = found.pop()
    assert (good.name, good.bad) == (str(tmp_path / "good.png"), None)
    for index, (look, said) in enumerate(zip(found, BAD, strict=True)):
        assert look.name == str(tmp_path / f"{index}.png") and said in str(look.bad)
        assert look.bad is not None and look.bad.kind
        assert f"{look.name} {look.bad}" == trained_on.bad[index], "a training says the same"


def test_the_next_good_image_stands_in_for_a_bad_one(tmp_path: Path) -> None:
    for index, pixels in enumerate(PICTURES):
        (tmp_path / f"{index}.png").write_bytes(b"" if index in (1, 3) else encoded(pixels))
    source = open_source(tmp_path)
    found = ImageFiles(source, 32).read([0, 1, 3], [False, True, False])  # after 3 comes 0
    whole = [fit(PICTURES[index], 32) for index in (0, 2, 0)]
    expected = np.stack([whole[0], whole[1][:, ::-1], whole[2]]).transpose(0, 3, 1, 2)
    assert found.values.dtype == torch.uint8 and np.array_equal(found.values, expected)
    assert torch.equal(
        to_float(found.values), torch.from_numpy(expected / np.float32(127.5) - np.float32(1))
    )
    assert found.bad == [f"{source.name(index)} is empty" for index in (1, 3)]


class Counting(Source):
    """One good image behind `bad` bad ones; it counts how often each was read."""

    def __init__(self, bad: int) -> None:
        super().__init__(Path("made up"), range(bad + 1))
        self.reads = [0] * (bad + 1)

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int) -> np.ndarray:
        self.reads[index] += 1
        if index + 1 < len(self):
            raise BadImage("is grey, not RGB")
        return PICTURES[0]


def test_many_bad_images_in_a_row_are_each_read_once() -> None:
    source = Counting(bad=2000)
    images = ImageFiles(source, 32)
    for index in (1, 0, 1, 1000):
        found = images.read([index], [False])
        assert np.array_equal(found.values[0], fit(PICTURES[0], 32).transpose(2, 0, 1))
        assert found.bad == [f"image {bad} is grey, not RGB" for bad in range(index, 2000)]
    assert source.reads == [1] * 2000 + [4]


def test_too_many_bad_images_in_a_row_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "MAX_BAD_IN_A_ROW", 20)
    said = "20 images in a row are bad, the last: image 24 is grey, not RGB"
    with pytest.raises(BadInput, match=f"^{said}"):
        ImageFiles(Counting(bad=30), 32).read([5], [False])
    assert not ImageFiles(Counting(bad=19), 32).read([19], [False]).bad


def test_images_that_are_all_grey_are_to_be_converted_not_skipped(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(encoded(PICTURES[index], "PNG", "L"))
    said = r"^all 3 images are bad, the last: .*\(grey\); --convert rgb reads it$"
    with pytest.raises(BadInput, match=said):
        ImageFiles(open_source(tmp_path), 32).read([0], [False])
    found = ImageFiles(open_source(tmp_path, "rgb"), 32).read([1], [False])
    grey = np.asarray(Image.fromarray(PICTURES[1]).convert("L"))
    expected = fit(np.stack([grey] * 3, axis=-1), 32).transpose(2, 0, 1)
    assert np.array_equal(found.values[0], expected) and found.bad == []


def test_a_source_of_bad_images_alone_ends(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"")
    said = r"^all 3 images are bad, the last: .*png is empty"
    with pytest.raises(BadInput, match=said):
        ImageFiles(open_source(tmp_path), 32).read([0], [False])
