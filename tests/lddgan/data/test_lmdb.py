"""LMDBs of other tools: what is no image, sizes, counts, planes."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lddgan.data.decode import BadImage
from lddgan.data.open_source import open_source
from lddgan.data.sources import Source
from lddgan.errors import BadInput
from tests.lddgan.data.support import PICTURES, encoded, lmdb_with, picture
from tests.needs import needs

IMAGE = encoded(PICTURES[0], "JPEG")
HASHES = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" for number in range(1, 100)]


def keys_of(source: Source) -> list[str]:
    return [key.decode() for key in source.names]


# ---- what is no image ----


@pytest.mark.parametrize(
    "others",
    [
        {"num-samples": b"3"},
        {"num_samples": b"3\n", "meta": json.dumps({"classes": ["cat"] * 50}).encode()},
        {"__len__": pickle.dumps(3, 2), "__keys__": pickle.dumps([b"0", b"1"])},
        {"meta_info": bytes(1000), "length": (3).to_bytes(4, "little")},
        {f"label-{number}": "café".encode() * number for number in range(1, 4)},
        {f"label-{number}": pickle.dumps(number) for number in range(1, 4)},
        {f"label-{number}": b"a cat" + b"!" * (186 + number) for number in range(4)},
        {"a comment of our own": ("überall gleich " * 200).encode()},
    ],
)
def test_bookkeeping_is_no_image_and_is_counted(tmp_path: Path, others: dict[str, bytes]) -> None:
    images = {f"image-{number:04d}": IMAGE for number in range(1, 4)}
    source = open_source(lmdb_with(tmp_path / "lmdb", images | others))
    assert keys_of(source) == sorted(images)
    assert source.passed_over == Counter({"bookkeeping entries": len(others)})


def test_bookkeeping_is_found_by_name_among_hashes(tmp_path: Path) -> None:
    others = {"Length": b"99", "num_images": b"99", "__meta__": pickle.dumps({})}
    source = open_source(lmdb_with(tmp_path / "lmdb", dict.fromkeys(HASHES, IMAGE) | others))
    assert keys_of(source) == sorted(HASHES) and source.passed_over.total() == 3


def test_samples_with_text_beside_each_image_are_told_apart(tmp_path: Path) -> None:
    samples = {f"{number:05d}.{kind}": value for number in range(40) for kind, value in FILES}
    source = open_source(lmdb_with(tmp_path / "lmdb", samples))
    assert keys_of(source) == [f"{number:05d}.jpg" for number in range(40)]
    assert source.passed_over.total() == 80


FILES = (("jpg", IMAGE), ("cls", b"7"), ("json", b'{"id": 7}'))


@pytest.mark.parametrize("name", ["cover", "length", "meta"])
def test_an_image_under_any_name_is_an_image(tmp_path: Path, name: str) -> None:
    source = open_source(lmdb_with(tmp_path / "lmdb", {"0": IMAGE, name: encoded(PICTURES[1])}))
    assert np.array_equal(source.read(1), PICTURES[1]) and not source.passed_over


@pytest.mark.parametrize("data", [b"", IMAGE[:200], bytes(200)])
def test_a_damaged_image_is_no_bookkeeping(tmp_path: Path, data: bytes) -> None:
    source = open_source(lmdb_with(tmp_path / "lmdb", {"0": IMAGE, "1": data, "cat": data}))
    assert len(source) == 3
    for index in (1, 2):
        with pytest.raises(BadImage):
            source.read(index)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([pickle.dumps((IMAGE, label)) for label in range(3)], "are pickled objects"),
        ([pickle.dumps(picture(0), 2)] * 5, "are pickled objects"),
        ([b"a caption", b"another one"], "are text"),
        ([bytes(3 * 48 * 32), bytes(3 * 64 * 48)], "nor raw RGB of squares; write its images"),
        ([b"\x08\x03\x10\x40\x18\x40\x22\x80" + bytes(99)], "are neither JPEG, "),
    ],
)
def test_an_lmdb_without_images_is_refused_once(
    tmp_path: Path, values: list[bytes], said: str
) -> None:
    entries = {f"{index:03d}": value for index, value in enumerate(values)}
    entries["__len__"] = pickle.dumps(len(values))
    with pytest.raises(BadInput, match=f"lmdb holds no images: its values .*{said}"):
        open_source(lmdb_with(tmp_path / "lmdb", entries))


@pytest.mark.parametrize(
    ("key", "count"),
    [("length", b"41"), ("num-samples", b"41"), ("__len__", pickle.dumps(41)), ("count", b"41\n")],
)
def test_an_lmdb_that_holds_fewer_than_it_says_is_cut(
    tmp_path: Path, key: str, count: bytes
) -> None:
    entries = dict.fromkeys(HASHES[:40], IMAGE) | {key: count}
    said = rf"says that it holds 41 images \({key}\), but 40 are there; copy or download it again"
    with pytest.raises(BadInput, match=said):
        open_source(lmdb_with(tmp_path / "lmdb", entries))
    whole = lmdb_with(tmp_path / "whole", entries | {HASHES[50]: IMAGE})
    assert len(open_source(whole)) == 41


def test_missing_keys_are_found_beside_bookkeeping(tmp_path: Path) -> None:
    entries = dict.fromkeys(["0", "1", "2", "4"], IMAGE) | {"meta": b"{}"}
    with pytest.raises(BadInput, match="has keys from 0 to 4, but 1 of these are missing"):
        open_source(lmdb_with(tmp_path / "lmdb", entries))


def test_a_pickled_count_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (open, (str(tmp_path / "ran"), "w"))

    entries = {"0": IMAGE, "__len__": pickle.dumps(Evil())}
    assert len(open_source(lmdb_with(tmp_path / "lmdb", entries))) == 1
    assert not (tmp_path / "ran").exists()


# ---- several sizes of each image ----

SIZES = {side: [picture(side + index, side, side) for index in range(3)] for side in (16, 40, 128)}


def sized(at: Path, form: str, count: int, raw: bool = False) -> Path:
    """Each image in the SIZES, under keys of a form."""
    entries = {
        form.format(side, index): pixels.tobytes() if raw else encoded(pixels)
        for side, images in SIZES.items()
        for index, pixels in enumerate(images)
    }
    return lmdb_with(at / "lmdb", entries | {"length": str(count).encode()})


FORMS = ["{}-{:05d}", "{}_{}", "size {0:04d}/{1:02d}.png", "{0}x{0}_{1}"]
FORMS += ["{1:05d}-{0}", "img{1:05d}/{0:04d}", "{1}_{0}x{0}.png"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [3, 9])
@pytest.mark.parametrize("raw", [False, True])
def test_one_size_of_an_lmdb_is_chosen(tmp_path: Path, form: str, count: int, raw: bool) -> None:
    path = sized(tmp_path, form, count, raw)
    with pytest.raises(BadInput, match=r"of several sizes \(16, 40, 128\); choose by --lmdb-size$"):
        open_source(path)
    for side, images in SIZES.items():
        source = open_source(path, lmdb_size=side)
        assert len(source) == 3 and source.passed_over["of other sizes"] == 6
        assert all(np.array_equal(source.read(index), images[index]) for index in range(3))
    with pytest.raises(BadInput, match=r"no images of --lmdb-size 64, but of 16, 40, 128$"):
        open_source(path, lmdb_size=64)


def test_a_size_that_lacks_images_is_cut(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds 4 images .*, but 3 are there"):
        open_source(sized(tmp_path, "{}-{}", 4), lmdb_size=40)


def test_pairs_of_numbers_are_no_sizes(tmp_path: Path) -> None:
    keys = [f"{person}-{photo}" for person in range(1, 4) for photo in range(3)]
    path = lmdb_with(tmp_path / "lmdb", dict.fromkeys(keys, IMAGE))
    assert keys_of(open_source(path)) == keys
    with pytest.raises(
        BadInput, match="no images of --lmdb-size 40, but images by no size; leave it out"
    ):
        open_source(path, lmdb_size=40)


def test_only_an_lmdb_takes_an_lmdb_size(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encoded(PICTURES[0]))
    with pytest.raises(BadInput, match="is no LMDB; leave out --lmdb-size"):
        open_source(tmp_path, lmdb_size=64)


# ---- raw images: pixels or planes ----


def planes(pixels: np.ndarray) -> bytes:
    return pixels.transpose(2, 0, 1).tobytes()


def opened_raw(at: Path, values: list[bytes]) -> Source:
    return open_source(lmdb_with(at, {str(index): data for index, data in enumerate(values)}))


def photos(side: int) -> list[np.ndarray]:
    """Parts of scikit-learn's two photos."""
    folder = Path(str(find_spec("sklearn").origin)).parent / "datasets" / "images"
    rng, found = np.random.default_rng(side), []
    for name in ("china.jpg", "flower.jpg") * 4:
        left, top = rng.integers(0, 640 - 256), rng.integers(0, 427 - 256)
        part = Image.open(folder / name).crop((left, top, left + 256, top + 256))
        found.append(np.asarray(part.resize((side, side), Image.Resampling.BILINEAR)))
    return found


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., :1], 3, axis=2)


def grainy(pixels: np.ndarray) -> np.ndarray:
    grain = np.random.default_rng(0).normal(0, 16, (*pixels.shape[:2], 1))
    return np.clip(pixels + grain, 0, 255)


@needs("sklearn")
@pytest.mark.parametrize("side", [24, 64, 256])
@pytest.mark.parametrize("tint", [np.array, grey, lambda pixels: pixels // 2 + 100, grainy])
def test_photos_in_planes_are_told_from_pixels(tmp_path: Path, side: int, tint) -> None:
    images = [tint(pixels).astype(np.uint8) for pixels in photos(side)]
    pixels = opened_raw(tmp_path / "pixels", [image.tobytes() for image in images])
    planar = opened_raw(tmp_path / "planes", [planes(image) for image in images])
    for index, image in enumerate(images):
        assert np.array_equal(pixels.read(index), image)
        assert np.array_equal(planar.read(index), image)
    assert not pixels.notes
    assert planar.notes == [
        f"the raw images of {planar.path} are read as planes (CHW), as they look"
    ]


def square(seed: int) -> np.ndarray:
    return picture(seed, 32, 32)


@pytest.mark.parametrize("scale", [lambda x: x, lambda x: x / 255, lambda x: x / 127.5 - 1])
def test_raw_floats_are_refused(tmp_path: Path, scale) -> None:
    images = [scale(pixels.astype(np.float32)) for pixels in map(square, range(3))]
    for number, values in enumerate((images, [image.transpose(2, 0, 1) for image in images])):
        with pytest.raises(BadInput, match="its values are raw float32, not bytes; write its"):
            opened_raw(tmp_path / str(number), [v.astype(np.float32).tobytes() for v in values])


def test_flat_photos_are_no_floats(tmp_path: Path) -> None:
    images = [171 + square(seed) // 11 for seed in range(3)]
    source = opened_raw(tmp_path / "lmdb", [image.tobytes() for image in images])
    assert all(np.array_equal(source.read(index), image) for index, image in enumerate(images))


@pytest.mark.parametrize("side", [32, 48, 100])
@pytest.mark.parametrize("colour", [(0, 255, 0), (12, 13, 14), (200, 90, 90)])
def test_flat_planes_are_one_colour(tmp_path: Path, side: int, colour: tuple) -> None:
    image = np.full((side, side, 3), colour, np.uint8)
    black = bytes(image.size)
    planar = opened_raw(tmp_path / "planes", [planes(image), planes(image), black, black])
    pixels = opened_raw(tmp_path / "pixels", [image.tobytes(), black])
    assert np.array_equal(planar.read(0), image) and np.array_equal(pixels.read(0), image)
    assert planar.notes and not pixels.notes


@pytest.mark.parametrize("make", [np.array, grey, lambda noise: grey(noise) // 2 + noise // 12])
@pytest.mark.parametrize("side", [16, 64])
def test_noise_and_grey_ramps_stay_pixels(tmp_path: Path, make, side: int) -> None:
    ramp = np.repeat(np.arange(side, dtype=np.uint8)[:, None, None], side, axis=1)
    ramp = np.repeat(ramp, 3, axis=2)
    for name, images in {
        "noise": [make(picture(seed, side, side)) for seed in range(3)],
        "ramps": [ramp, ramp[::-1], ramp.transpose(1, 0, 2)],
    }.items():
        source = opened_raw(tmp_path / name, [image.tobytes() for image in images])
        assert not source.notes
        assert all(np.array_equal(source.read(i), image) for i, image in enumerate(images))
