"""Archives and other files that people download: tars are read, the rest is named."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lddgan.data.decode import BadImage
from lddgan.data.open_source import open_source
from lddgan.errors import BadInput
from tests.lddgan.data.support import PICTURES, encoded, lmdb_with

IMAGES = {f"{folder}/{index}.png": encoded(PICTURES[index]) for index, folder in enumerate("baab")}


def tar(path: Path, files: dict[str, bytes], mode: str = "w", **settings) -> Path:
    with tarfile.open(path, mode, **settings) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


# ---- tar archives ----


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["photos.tar", "photos"])
def test_a_tar_gives_back_the_images(tmp_path: Path, layout: int, name: str) -> None:
    far = {f"./{'a long folder/' * 8}é.JPEG": encoded(PICTURES[0])}
    source = open_source(tar(tmp_path / name, IMAGES | far, format=layout))
    assert source.names == sorted([*far, *IMAGES])
    for index, key in enumerate(source.names[1:], start=1):
        assert np.array_equal(source.read(index), PICTURES[int(key[2])])
        assert key in source.name(index)


def test_a_tar_leaves_out_what_is_no_image(tmp_path: Path) -> None:
    others = {"a/notes.txt": b"no image", "__MACOSX/a/._1.png": b"of macOS", "a/.2.png": b""}
    path = tar(tmp_path / "photos.tar", IMAGES | others)
    with tarfile.open(path, "a") as archive:
        for kind, name in (
            (tarfile.SYMTYPE, "link.png"),
            (tarfile.FIFOTYPE, "pipe.png"),
            (tarfile.DIRTYPE, "folder.png"),
            (tarfile.LNKTYPE, "same.png"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a/1.png"
            archive.addfile(member)
    source = open_source(path)
    assert source.names == sorted([*IMAGES, "same.png"])
    assert np.array_equal(source.read(4), PICTURES[1])
    assert source.passed_over["links"] == source.passed_over["no plain files"] == 1


def test_the_last_of_two_files_of_a_name_counts(tmp_path: Path) -> None:
    path = tar(tmp_path / "photos.tar", IMAGES)
    source = open_source(tar(path, {"a/1.png": IMAGES["a/2.png"]}, "a"))
    assert source.names == sorted(IMAGES)
    assert np.array_equal(source.read(0), PICTURES[2])
    assert source.passed_over == Counter({"earlier files of the same name": 1})


def test_a_tar_may_end_in_a_zip(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", {"x.txt": b""}).read_bytes()
    source = open_source(tar(tmp_path / "photos.tar", IMAGES | {"z.zip": inner}))
    assert source.names == sorted(IMAGES)


def test_a_tar_that_changes_later_names_the_image(tmp_path: Path) -> None:
    source = open_source(tar(tmp_path / "photos.tar", IMAGES))
    source.path.write_bytes(source.path.read_bytes()[:1000])
    with pytest.raises(BadImage, match="is cut short"):
        source.read(3)
    source.path.unlink()
    with pytest.raises(BadImage, match=r"cannot be read \(No such file"):
        source.read(3)


def last_member(path: Path) -> int:
    with tarfile.open(path) as archive:
        return archive.getmembers()[-1].offset


@pytest.mark.parametrize(
    "harm",
    [
        lambda data, last: data[: last // 2],
        lambda data, last: data[: last + 600],
        lambda data, last: data[:last],
        lambda data, last: data[:last] + b"?" * 300 + data[last + 300 :],
    ],
)
def test_a_cut_or_damaged_tar_is_refused(tmp_path: Path, harm) -> None:
    path = tar(tmp_path / "photos.tar", IMAGES)
    path.write_bytes(harm(path.read_bytes(), last_member(path)))
    with pytest.raises(BadInput, match=r"is no whole tar archive \(.*\); download it again"):
        open_source(path)


def test_what_follows_the_end_of_a_tar_is_not_dropped_unsaid(tmp_path: Path) -> None:
    path = tar(tmp_path / "photos.tar", IMAGES)
    data = path.read_bytes()
    path.write_bytes(data + bytes(3 << 20))
    assert len(open_source(path)) == len(IMAGES)
    for joined in (data + data, bytes(512) + data[512:]):
        path.write_bytes(joined)
        with pytest.raises(BadInput, match=r"more follows its end at byte .*`tar -xif` unpacks"):
            open_source(path)


def test_an_old_tar_is_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "photos.tar", {"1.png": IMAGES["a/1.png"]}, format=tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[257:512] = bytes(255)  # the mark, and what older ones lack
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    assert len(open_source(path)) == 1


def test_an_empty_tar_holds_no_images(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"photos.tar holds no images"):
        open_source(tar(tmp_path / "photos.tar", {}))


@pytest.mark.parametrize("name", ["photos.tar.gz", "photos.tbz", "photos.tar"])
def test_a_compressed_tar_is_to_be_unpacked(tmp_path: Path, name: str) -> None:
    path = tar(tmp_path / name, IMAGES, "w:bz2" if name == "photos.tbz" else "w:gz")
    with pytest.raises(
        BadInput, match=rf"{name} is compressed \(\w+\): unpack it, and give what comes out"
    ):
        open_source(path)


# ---- what an archive or a folder holds in place of images ----


def lmdb_files(at: Path, name: str) -> dict[str, bytes]:
    folder = lmdb_with(at / "made" / name, {"0": encoded(PICTURES[0])})
    return {f"{name}/{file.name}": file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("pack", [zipped, tar])
def test_an_lmdb_in_an_archive_is_to_be_unpacked(tmp_path: Path, pack) -> None:
    files = lmdb_files(tmp_path, "bridge_val_lmdb")
    path = pack(tmp_path / "bridge.any", files | {"__MACOSX/x/._data.mdb": b""})
    said = f"holds LMDBs, not images: unpack it in its folder, then give {tmp_path}/bridge_val_lmdb"
    with pytest.raises(BadInput, match=f"{said}$"):
        open_source(path)
    bare = {Path(name).name: data for name, data in files.items()}
    path = pack(tmp_path / "bare.any", bare)
    into = f"{tmp_path}/bare_unpacked"
    with pytest.raises(BadInput, match=f"unpack it into {into}, then give {into}$"):
        open_source(path)


def test_a_folder_of_lmdbs_lists_them(tmp_path: Path) -> None:
    lmdb_with(tmp_path / "deep" / "er" / "one", {"0": encoded(PICTURES[0])})
    with pytest.raises(BadInput, match=f"holds LMDBs, not images: give {tmp_path}/deep/er/one$"):
        open_source(tmp_path)
    lmdb_with(tmp_path / "two.lmdb", {"0": encoded(PICTURES[0])}, subdir=False)
    given = f"give one of {tmp_path}/deep/er/one, {tmp_path}/two.lmdb$"
    with pytest.raises(BadInput, match=given):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["a/one.zip", "two.tar.gz"],
            r"holds archives, not images: .*give one of .*a/one.zip, .*two.tar.gz$",
        ),
        (["train-00.tfrecord-00001-of-00002"], r"holds files that are not read \(train-00"),
        (["arr_0.npy"], r"not read \(arr_0.npy\): write its images as files into a folder"),
        (["archive/data.pkl", "archive/data/0"], r"not read \(archive/data.pkl\)"),
        ([f"{number:02d}.parquet" for number in range(30)], r"09.parquet, \.\.\.\)"),
        (["readme.md", ".hidden.zip", "__MACOSX/a.zip"], r"holds no images \(\.\w+, "),
    ],
)
@pytest.mark.parametrize("pack", [zipped, tar, None])
def test_what_is_held_in_place_of_images_is_named(
    tmp_path: Path, names: list[str], said: str, pack
) -> None:
    path = tmp_path / "held"
    if pack is None:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"some")
    else:
        pack(path, dict.fromkeys(names, b"some"))
    with pytest.raises(BadInput, match=said):
        open_source(path)


# ---- files of other kinds ----


def record(data: bytes) -> bytes:
    """A record of a TFRecord file."""
    return struct.pack("<QI", len(data), 7) + data + bytes(4)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "celeba-r08",
            record(b"\n\x90\1" + bytes(140)) * 2,
            r"is a file of another kind \(TFRecord\): write its images as",
        ),
        ("a.tfrecord-00001", b"", r"is a file of another kind \(TFRecord\): "),
        (
            "a",
            b"\x89HDF\r\n\x1a\n" + bytes(600),
            r"is a file of another kind \(HDF5\): write its images",
        ),
        ("a.zst", b"\x28\xb5\x2f\xfd" + bytes(600), r"is compressed \(zstd\): unpack it"),
        ("a.jpg.gz", b"\x1f\x8b\x08" + bytes(600), r"is compressed \(gzip\): unpack it"),
        (
            "a.7z",
            b"7z\xbc\xaf\x27\x1c" + bytes(60),
            r"is compressed \(7z\): unpack it, and give what",
        ),
        ("a.rar", b"Rar!\x1a\x07\1\0" + bytes(60), r"is compressed \(RAR\): unpack it"),
        (
            "a.parquet",
            b"PAR1" + bytes(60) + b"PAR1",
            r"is a file of another kind \(Parquet\): write",
        ),
        ("a.arrow", b"ARROW1\0\0" + bytes(60), r"is a file of another kind \(Arrow\): write"),
        ("a.npy", b"\x93NUMPY\1\0" + bytes(600), r"is a file of another kind \(numpy\): write"),
        (
            "a.pkl",
            pickle.dumps([encoded(PICTURES[0])]),
            r"is a file of another kind \(pickle\): write",
        ),
    ],
)
def test_other_files_are_named_by_their_content(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=f"{name} {said}") as caught:
        open_source(tmp_path / name)
    assert "\n" not in str(caught.value)
