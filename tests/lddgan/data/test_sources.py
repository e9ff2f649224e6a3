"""Every source gives the images that were put in; bad ones are named."""

from __future__ import annotations

import io
import math
import mmap
import multiprocessing
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lddgan.data.decode import BadImage
from lddgan.data.open_source import open_source
from lddgan.data.sources import Source
from lddgan.errors import BadInput
from tests.lddgan.data.support import PICTURES, encoded, lmdb_with, picture
from tests.needs import needs

# ---- sources ----


def folder(at: Path) -> Path:
    for index, pixels in enumerate(PICTURES):
        place = at / "images" / "ab"[index // 2] / f"{index}.PNG"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(pixels))
    (at / "images" / "notes.txt").write_text("no image")
    (at / "images" / "._0.png").write_text("left by macOS")
    return at / "images"


def archive(at: Path) -> Path:
    with zipfile.ZipFile(at / "images.zip", "w") as file:
        for index in (2, 0, 3, 1):
            file.writestr(f"some/{index}.png", encoded(PICTURES[index]))
        file.writestr("some/readme.md", "no image")
    return at / "images.zip"


def tar(at: Path) -> Path:
    with tarfile.open(at / "images.tar", "w") as file:
        for index in (2, 0, 3, 1):
            member, data = tarfile.TarInfo(f"some/{index}.png"), encoded(PICTURES[index])
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return at / "images.tar"


def lmdb_of(at: Path, values: list[bytes], *, file: str = "") -> Path:
    """Values under the keys 0, 1, 2, ...; in a folder, or the one file `file`."""
    return lmdb_with(at / (file or "lmdb"), {str(i): v for i, v in enumerate(values)}, not file)


def encoded_lmdb(at: Path) -> Path:
    return lmdb_of(at, [encoded(pixels) for pixels in PICTURES])


def file_lmdb(at: Path) -> Path:
    return lmdb_of(at, [encoded(pixels) for pixels in PICTURES], file="images.mdb")


def file_lmdb_by_another_name(at: Path) -> Path:
    return lmdb_of(at, [encoded(pixels) for pixels in PICTURES], file="images.lmdb")


@pytest.mark.parametrize(
    "make", [folder, archive, tar, encoded_lmdb, file_lmdb, file_lmdb_by_another_name]
)
def test_sources_give_back_the_images(tmp_path: Path, make) -> None:
    source = open_source(make(tmp_path))
    assert len(source) == 4
    for index, pixels in enumerate(PICTURES):
        assert np.array_equal(source.read(index), pixels)
        assert str(index) in source.name(index) and str(tmp_path) in source.name(index)


def test_raw_images_of_an_lmdb_are_square(tmp_path: Path) -> None:
    square = picture(0, 24, 24)
    source = open_source(lmdb_of(tmp_path, [square.tobytes(), b"\0" * 1000]))
    assert np.array_equal(source.read(0), square)
    with pytest.raises(BadImage, match="is no image of a known format"):
        source.read(1)


SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"P6")


@pytest.mark.parametrize("first", [*SIGNATURES, b"P6\n", b"\x89PNG\r\n\x1a\n", b"BM\0"])
@pytest.mark.parametrize("fill", [None, 0, 255])
def test_a_raw_image_may_begin_as_an_encoded_one(
    tmp_path: Path, first: bytes, fill: int | None
) -> None:
    square = picture(0, 24, 24) if fill is None else np.full((24, 24, 3), fill, np.uint8)
    data = first + square.tobytes()[len(first) :]
    source = open_source(lmdb_of(tmp_path, [data]))
    assert source.read(0).shape == (24, 24, 3) and source.read(0).tobytes() == data


def padded(data: bytes) -> bytes:
    """Zeros behind an encoded image, so that its length is that of raw square RGB."""
    side = math.isqrt(len(data) // 3) + 1
    return data.ljust(3 * side**2, b"\0")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (padded(encoded(PICTURES[0], "PNG", "L")), "has the mode L, not RGB"),
        (padded(encoded(PICTURES[0], "JPEG", "CMYK")), "has the mode CMYK, not RGB"),
        (encoded(PICTURES[0])[: 3 * 17**2], "is damaged"),
        (encoded(PICTURES[0], "BMP")[: 3 * 17**2], "is damaged"),
    ],
)
def test_a_bad_image_of_a_raw_ones_length_is_no_raw_one(
    tmp_path: Path, data: bytes, said: str
) -> None:
    with pytest.raises(BadImage, match=said):
        open_source(lmdb_of(tmp_path, [data])).read(0)


@pytest.mark.parametrize(
    "keys",
    ["0 1 2", "000 001 002", "1 2 5", "0 1 x4", "256-00000 256-00004", "cafe f00d", "0"],
)
def test_keys_without_gaps_and_other_keys_are_taken(tmp_path: Path, keys: str) -> None:
    data = encoded(PICTURES[0])
    source = open_source(lmdb_with(tmp_path / "lmdb", dict.fromkeys(keys.split(), data)))
    assert [source.name(i) for i in range(len(source))] == [
        f"key {key} in {source.path}" for key in keys.split()
    ]


def first_pixels(source: Source) -> np.ndarray:
    return source.read(0)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_open_their_own_handles(tmp_path: Path, method: str) -> None:
    sources = [open_source(make(tmp_path)) for make in (folder, archive, tar, encoded_lmdb)]
    for source in sources:
        source.read(0)  # the handle of this process is open
    with multiprocessing.get_context(method).Pool(2) as pool:
        for pixels in pool.map(first_pixels, sources * 4, chunksize=1):
            assert np.array_equal(pixels, PICTURES[0])


# ---- CIFAR-10 ----

CIFAR = np.random.default_rng(9).integers(0, 256, (5, 7, 3, 32, 32), np.uint8)


def pickled(batch: np.ndarray) -> bytes:
    values = {b"data": batch.reshape(len(batch), -1), b"labels": [0] * len(batch)}
    return pickle.dumps(values, protocol=2)


def binary(batch: np.ndarray) -> bytes:
    return b"".join(b"\7" + planes.tobytes() for planes in batch)


@pytest.mark.parametrize("unpack", [False, True])
@pytest.mark.parametrize(
    ("write", "suffix", "kind"), [(pickled, "", "py"), (binary, ".bin", "bin")]
)
def test_cifar10_is_read_from_every_form_of_it(
    tmp_path: Path, write, suffix: str, kind: str, unpack: bool
) -> None:
    inside = tmp_path / f"cifar-10-batches-{kind}"
    inside.mkdir()
    for number, batch in enumerate(CIFAR, start=1):
        (inside / f"data_batch_{number}{suffix}").write_bytes(write(batch))
    (inside / f"test_batch{suffix}").write_bytes(write(CIFAR[0]))
    path = tmp_path
    if not unpack:
        path = tmp_path / "cifar-10.tar.gz"
        with tarfile.open(path, "w:gz") as file:
            file.add(inside, inside.name)
    source = open_source(path)
    assert len(source) == 35, "the test batch is not trained on"
    assert np.array_equal(source.read(8), CIFAR[1, 1].transpose(1, 2, 0))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (open, (str(tmp_path / "ran"), "w"))

    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps({b"data": Evil()}, 2))
    with pytest.raises(BadInput, match=r"data_batch_1 of .* is no batch .* \(it asks for .*open"):
        open_source(tmp_path)
    assert not (tmp_path / "ran").exists()


# ---- what cannot be opened ----


def cut(path: Path, share: float = 0.5) -> Path:
    file = path / "data.mdb" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    return path


def test_an_lmdb_that_is_cut_short_is_refused_before_it_is_read(tmp_path: Path) -> None:
    values = [encoded(picture(seed, 90, 90)) for seed in range(8)]
    whole = lmdb_of(tmp_path, values)
    with pytest.raises(BadInput, match=r"data.mdb is cut short: it has .* bytes and says that it"):
        open_source(cut(whole))


def with_bytes(path: Path, at: int, data: bytes) -> Path:
    """An LMDB whose file has other bytes at a place."""
    with (path / "data.mdb").open("r+b") as file:
        file.seek(at)
        file.write(data)
    return path


def without_third(path: Path, value: bytes) -> Path:
    """An LMDB whose entry "3" has its value on a page that does not exist."""
    entry = struct.pack("<IHH", len(value), 1, 1) + b"3"  # bytes, kind, length of the key, key
    at = (path / "data.mdb").read_bytes().index(entry) + len(entry)
    return with_bytes(path, at, struct.pack("<Q", 1 << 40))


def test_a_damaged_lmdb_is_refused(tmp_path: Path) -> None:
    small, large = bytes(16), encoded(picture(0, 90, 90))
    whole = lmdb_of(tmp_path, [small] * 8)  # on the only page behind the two of the header
    with pytest.raises(BadInput, match=r"lmdb is damaged \(.*MDB_CORRUPTED.*\); copy or download"):
        open_source(with_bytes(whole, 2 * mmap.PAGESIZE + 10, b"\xff\xff"))
    whole = lmdb_with(tmp_path / "other", {str(index): large for index in range(8)})
    with pytest.raises(BadInput, match=r"other is damaged \(.*MDB_PAGE_NOTFOUND.*\); copy or down"):
        open_source(without_third(whole, large))


def test_an_lmdb_that_is_damaged_later_names_the_image(tmp_path: Path) -> None:
    value = encoded(picture(0, 90, 90))
    source = open_source(lmdb_of(tmp_path, [value] * 8))
    without_third(source.path, value)
    assert source.read(2).shape == (90, 90, 3)
    with pytest.raises(BadImage, match=r"^cannot be read \(.*MDB_PAGE_NOTFOUND"):
        source.read(3)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ([4, 7], "has keys from 0 to 11, but 2 of these are missing; copy or download"),
        ([1], "has keys from 0 to 11, but 1 of these are missing; copy or download"),
    ],
)
@pytest.mark.parametrize("digits", [1, 5])
def test_an_lmdb_with_missing_keys_is_refused(
    tmp_path: Path, missing: list[int], said: str, digits: int
) -> None:
    keys = [str(number).zfill(digits) for number in range(12) if number not in missing]
    entries = dict.fromkeys(keys, encoded(PICTURES[0]))
    with pytest.raises(BadInput, match=said):
        open_source(lmdb_with(tmp_path / "lmdb", entries))


def test_an_empty_lmdb_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"lmdb is an LMDB without entries$"):
        open_source(lmdb_of(tmp_path, []))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing", None, "nothing does not exist"),
        ("a.zip", b"PK\3\4 and no more", "is no whole zip archive"),
        ("a.zip", b"", "is no whole zip archive"),
        pytest.param(
            *("data.mdb", b"\0" * 8192, "cannot be opened as an LMDB"), marks=needs("lmdb")
        ),
        ("notes.txt", b"hello", "is no folder of images, zip or tar archive, LMDB or archive"),
    ],
)
def test_unknown_sources_are_one_sentence(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=said) as caught:
        open_source(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_incomplete_sources_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no images \(\.apng, \.avif"):
        open_source(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(binary(CIFAR[0]))
    with pytest.raises(BadInput, match="not the whole of CIFAR-10: data_batch_2, data_batch_3, "):
        open_source(tmp_path)
