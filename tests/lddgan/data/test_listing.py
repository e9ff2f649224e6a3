"""Every file of a folder or zip archive is an image, or is counted with the reason why not."""

from __future__ import annotations

import os
import socket
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lddgan.data.check import Summary, check_images
from lddgan.data.listing import describe_passed_over
from lddgan.data.open_source import open_source
from lddgan.data.sources import Zip
from lddgan.errors import BadInput
from tests.lddgan.data.support import PICTURES, encoded, lmdb_with

DATA = [encoded(pixels) for pixels in PICTURES]
links = pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


# ---- folders ----


def test_pictures_of_a_training_are_not_trained_on(tmp_path: Path) -> None:
    run = {"runs/a/generator.losses.jsonl": b"", "runs/a/samples/generator-0000100.png": DATA[1]}
    source = open_source(write(tmp_path, {"a.png": DATA[0], "runs/b.png": DATA[2]} | run))
    assert source.names == ["a.png", "runs/b.png"]
    assert source.passed_over == {"in folders of trainings": 2}
    assert len(open_source(tmp_path / "runs" / "a" / "samples")) == 1


def test_what_is_no_image_is_counted_by_reason(tmp_path: Path) -> None:
    kept = ["a.JFIF", "b/c.gif", "b/d.avif", "b/IMG_0001", "v1.2/e.webp", "f/g.png"]
    left = {
        ".heic": ["1.HEIC", "b/2.heic"],
        ".txt": ["b/captions.txt"],
        "without a suffix": ["LICENSE", "empty"],
        "hidden": ["._a.jpg", "b/.DS_Store"],
        "in hidden folders": [".git/objects/x.png", ".trash/y/z.png", ".thumbnails/t.png"],
        "in __MACOSX": ["__MACOSX/a.jpg", "__MACOSX/b/._c.png"],
        "in @eaDir": ["b/@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg"],
        "in Thumbs": ["b/Thumbs/a.jpg"],
    }
    files = dict.fromkeys(kept, DATA[0]) | {n: DATA[1] for names in left.values() for n in names}
    source = open_source(write(tmp_path, files | {"LICENSE": b"P6, Python", "empty": b""}))
    assert source.names == sorted(kept)
    assert source.passed_over == {why: len(names) for why, names in left.items()}
    assert all(np.array_equal(source.read(i), PICTURES[0]) for i in range(len(source)))


def test_only_what_was_passed_over_is_named_if_nothing_is_left(tmp_path: Path) -> None:
    write(tmp_path, {"1.heic": DATA[0], "2.heic": DATA[0], ".a/3.png": DATA[0]})
    said = r"holds no images \(.*\); passed over: 2 \.heic, 1 in hidden folders$"
    with pytest.raises(BadInput, match=said):
        open_source(tmp_path)


def test_reasons_are_told_most_frequent_first_and_not_endlessly() -> None:
    assert describe_passed_over(Counter()) == ""
    many = Counter({".heic": 3, "hidden": 1200} | {f".{number}": 1 for number in range(20)})
    assert describe_passed_over(many) == (
        "; passed over: 1,200 hidden, 3 .heic, 1 .0, 1 .1, 1 .2, 1 .3, 1 .4, 1 .5, 14 others"
    )


@pytest.mark.parametrize("broken", ["deep", "deep/er"])
def test_a_folder_that_may_not_be_listed_is_named(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a.png": DATA[0], "deep/er/b.png": DATA[1], ".cache/c.png": DATA[2]})
    scandir = os.scandir
    forbidden = {str(tmp_path / broken), str(tmp_path / ".cache")}  # root may list all

    def refuse(path: str) -> object:
        if str(path) in forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BadInput, match=f"{broken} cannot be listed .Permission denied.; let"):
        open_source(tmp_path)
    forbidden.remove(str(tmp_path / broken))
    source = open_source(tmp_path)
    assert len(source) == 2 and source.passed_over == {"in hidden folders": 1}


@links
def test_linked_folders_are_followed_and_each_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, {"root/z/a.png": DATA[0], "far/b.png": DATA[1], "far/deep/c.png": DATA[2]})
    root = tmp_path / "root"
    (root / "up").symlink_to(root)  # a loop
    (root / "a link").symlink_to(root / "z")
    (root / "far").symlink_to(tmp_path / "far")
    (root / "far again").symlink_to(tmp_path / "far" / "deep")
    (tmp_path / "far" / "back").symlink_to(root / "z")
    source = open_source(root)
    assert source.names == ["far/b.png", "far/deep/c.png", "z/a.png"]
    assert [source.read(i).tobytes() for i in range(3)] == [
        PICTURES[i].tobytes() for i in (1, 2, 0)
    ]
    assert source.passed_over == {"named twice through links": 4}
    through = tmp_path / "through"
    through.symlink_to(root)
    assert open_source(through).names == source.names


@links
def test_linked_files_count_once_and_hard_links_are_files(tmp_path: Path) -> None:
    write(tmp_path, {"root/m.png": DATA[0], "far.bin": DATA[1], "root/.h.png": DATA[2]})
    root = tmp_path / "root"
    os.link(root / "m.png", root / "hard.png")
    (root / "a.png").symlink_to("m.png")
    (root / "b.png").symlink_to(tmp_path / "far.bin")
    (root / "c.png").symlink_to(tmp_path / "far.bin")
    (root / "shown.png").symlink_to(".h.png")
    (root / "nowhere.png").symlink_to("missing.png")
    (root / "itself.png").symlink_to("itself.png")
    (root / "gone").symlink_to("m.png/inside")
    source = open_source(root)
    assert source.names == ["b.png", "hard.png", "m.png", "shown.png"]
    assert source.passed_over == {"named twice through links": 2, "broken links": 3, "hidden": 1}


@links
def test_pipes_and_sockets_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.png": DATA[0]})
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to a device.png").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket.png")
        source = open_source(tmp_path)
    assert source.names == ["a.png"] and source.passed_over == {"pipes, sockets or devices": 4}
    with pytest.raises(BadInput, match="pipe is neither a folder nor a file"):
        open_source(tmp_path / "pipe")


# ---- zip archives ----


def test_a_zip_is_read_as_a_folder_is(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    link = zipfile.ZipInfo("photos/link.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("photos.png")
        for name in ("./photos/a.png", "photos/b", "__MACOSX/a.png", "photos\\.x\\c.png", "d.heic"):
            archive.writestr(name, DATA[0])
        archive.writestr("notes", "no image")
        with archive.open(zipfile.ZipInfo(""), "w") as nameless:
            nameless.write(b"no name")
        archive.writestr(link, "photos/b")
        archive.writestr("photos/e.jpg", DATA[1])
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("photos/e.jpg", DATA[2])
    source = open_source(path)
    assert source.names == ["./photos/a.png", "photos/b", "photos/e.jpg"]
    assert np.array_equal(source.read(2), PICTURES[2]), "what was added last counts"
    assert source.passed_over == {
        "without a suffix": 2,
        **dict.fromkeys(("in __MACOSX", "in hidden folders", ".heic", "links"), 1),
        "earlier files of the same name": 1,
    }


def test_an_encrypted_zip_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", DATA[0])
        archive.writestr("b.png", DATA[1])
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1  # the flag of b.png in the directory
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"a\.zip is encrypted; unpack it with its password, and"):
        Zip(path)


def test_a_damaged_member_of_a_zip_is_a_bad_image(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", DATA[0])
        archive.writestr("b.png", DATA[1])
    data = bytearray(path.read_bytes())
    data[60:160] = b"\xff" * 100
    path.write_bytes(data)
    source = open_source(path)
    looks = list(check_images(source, 32, processes=1))
    assert [look.bad and look.bad.kind for look in looks] == ["cannot be read", None]


# ---- what people are told ----


def test_the_table_counts_what_is_good_bad_and_left_out(tmp_path: Path) -> None:
    grey = {f"grey {number}.png": encoded(PICTURES[0], "PNG", "L") for number in range(4)}
    grey["deep/k.jpg"] = encoded(PICTURES[0], "JPEG", "CMYK")
    files = {"a.png": DATA[0], "b.png": DATA[1], "c.jpg": b"", "d.cr2": b"raw"}
    source = open_source(write(tmp_path, files | grey))
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(PICTURES[2]).save(tmp_path / "b.png", exif=exif)
    source.notes.append("a note")
    summary = Summary(source)
    for look in check_images(source, 32, processes=1):
        summary.add(look)
    lines = [[cell.strip() for cell in line.split("  ") if cell] for line in summary.lines()]
    convert = "--convert rgb reads them"
    assert lines == [
        ["images", "what", "what to do", "for example"],
        ["2", "good"],
        ["1", "- turned upright, as the camera says"],
        ["4", "grey", convert, "grey 0.png, grey 1.png, grey 2.png, ..."],
        ["1", "empty", "copy or download them again", "c.jpg"],
        ["1", "CMYK", convert, "deep/k.jpg"],
        [],
        ["files", "passed over"],
        ["1", ".cr2"],
        ["a note"],
        [f"{tmp_path}: 8 images, 6 bad"],
    ]


def test_a_training_is_told_what_it_reads(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": DATA[0], "b.GIF": DATA[1], "c.heic": DATA[2]})
    source = open_source(tmp_path)
    source.notes.append("a note")
    assert source.told() == [
        f"{tmp_path}: 2 images; passed over: 1 .heic",
        "of 1 .gif files the first picture is taken",
        "a note",
    ]


def test_images_beside_a_set_are_counted(tmp_path: Path) -> None:
    lmdb_with(tmp_path / "l", {"0": DATA[0]})
    source = open_source(write(tmp_path / "l", {"a.png": DATA[1], "b/c.png": DATA[2]}))
    assert len(source) == 1 and source.passed_over == {"images beside them": 2}


def test_frames_with_numbers_for_suffixes_are_read(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, {"clip.0001": DATA[0], "clip.0002": DATA[1], "x.0": b"0"}))
    assert source.names == ["clip.0001", "clip.0002"]
    assert source.passed_over == {"without a suffix": 1}


def test_one_image_is_no_set(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": DATA[0]})
    with pytest.raises(BadInput, match=r"a\.png is one image; give the folder that it is in"):
        open_source(tmp_path / "a.png")
