"""Images on disk: the grid's layout, bit-exact files, and nothing half-written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lddgan.errors import BadInput, LddganError
from lddgan.pictures import Batch, form_of, grid, png, write_folder, write_images

ROOT = Path(__file__).parents[2]


def pictures(count: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def in_batches(images: np.ndarray, size: int, first: int = 0) -> Iterator[Batch]:
    for start in range(0, len(images), size):
        yield first + start, images[start : start + size]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "RGB" and picture.format == "PNG"
        return np.asarray(picture)


# ---- the grid ----


@pytest.mark.parametrize(
    ("count", "columns", "rows"),
    [(1, 1, 1), (2, 2, 1), (3, 2, 2), (4, 2, 2), (5, 3, 2), (10, 4, 3), (64, 8, 8)],
)
@pytest.mark.parametrize(("size", "factor"), [(8, 8), (32, 2), (40, 2), (64, 1), (70, 1)])
def test_tiles_stand_in_rows_two_pixels_apart(
    count: int, columns: int, rows: int, size: int, factor: int
) -> None:
    images = pictures(count, size, size)
    canvas = grid(images)
    side = size * factor
    assert canvas.shape == (2 + rows * (side + 2), 2 + columns * (side + 2), 3)
    rest = np.ones(canvas.shape[:2], bool)
    for i, image in enumerate(images):
        top, left = 2 + (i // columns) * (side + 2), 2 + (i % columns) * (side + 2)
        tile = canvas[top : top + side, left : left + side]
        assert np.array_equal(tile, np.kron(image, np.ones((factor, factor, 1), np.uint8)))
        rest[top : top + side, left : left + side] = False
    assert (canvas[rest] == 255).all()


@pytest.mark.parametrize("shape", [(37, 53), (1, 1), (2, 1), (1, 300)])
def test_png_is_bit_exact(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = pictures(1, *shape)[0]
    (tmp_path / "x.png").write_bytes(png(image))
    assert np.array_equal(read(tmp_path / "x.png"), image)
    apart = image[::-1, ::-1]  # in memory
    (tmp_path / "x.png").write_bytes(png(apart))
    assert np.array_equal(read(tmp_path / "x.png"), apart)
    with Image.open(tmp_path / "x.png") as found:
        found.verify()  # checksums
        assert found.mode == "RGB"


# ---- the three forms ----


def test_grid_file_holds_the_grid_of_all_batches(tmp_path: Path) -> None:
    images, heard = pictures(7), []
    path = tmp_path / "new" / "grid.png"
    write_images(path, in_batches(images, 3), heard.append)
    assert heard == [3, 3, 1]
    assert np.array_equal(read(path), grid(images))
    assert list(path.parent.iterdir()) == [path]


def test_npz_holds_the_images_the_first_index_and_their_origin(tmp_path: Path) -> None:
    images = pictures(5, 8, 8)
    path = tmp_path / "all.npz"
    write_images(path, in_batches(images, 2, 2**62), lambda _: None, origin="{}")
    with np.load(path) as arrays:
        assert sorted(arrays.files) == ["first", "images", "origin"]
        assert (arrays["first"], str(arrays["origin"])) == (2**62, "{}")
        assert arrays["images"].dtype == np.uint8
        assert np.array_equal(arrays["images"], images)


def test_folder_has_one_file_per_image_named_by_its_index(tmp_path: Path) -> None:
    images = pictures(5, 8, 8)
    folder = tmp_path / "a" / "samples"
    write_images(folder, in_batches(images, 2, 999_998), lambda _: None)
    names = ["999998.png", "999999.png", "1000000.png", "1000001.png", "1000002.png"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)
    for name, image in zip(names, images, strict=True):
        assert np.array_equal(read(folder / name), image)
    write_images(tmp_path / "b", in_batches(images, 5), lambda _: None)
    assert sorted(p.name for p in (tmp_path / "b").iterdir())[0] == "000000.png"


def test_files_are_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_images(tmp_path / "x.png", [(0, pictures(1))], lambda _: None)
    finally:
        os.umask(before)
    assert (tmp_path / "x.png").stat().st_mode & 0o777 == 0o640


# ---- what is refused before anything is made ----

FORMS = {
    "new.png": "grid",
    "näme with space.PNG": "grid",
    "deep/er/new.npz": "array",
    "new": "folder",
    "samples_v2.10": "folder",
    "runs/1999.12.31": "folder",
    "folder.png": "folder",
    "folder.gif": "folder",
}


@pytest.mark.parametrize("name", FORMS)
def test_form_is_of_the_suffix_or_an_existing_folder(tmp_path: Path, name: str) -> None:
    for folder in ("folder.png", "folder.gif"):
        (tmp_path / folder).mkdir()
    assert form_of(tmp_path / name) == FORMS[name]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.gif", "folder.png"]


@pytest.mark.parametrize("name", ["picture.jpg", "archive.tar.gz", "clip.MP4", "array.npy"])
def test_files_of_other_kinds_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="images go to a") as caught:
        form_of(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


# ---- disks that fail ----


@pytest.mark.parametrize("name", ["x.png", "x.npz"])
def test_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LddganError, match="No space left on device") as caught:
        write_images(path, [(0, pictures(2))], lambda _: None)
    assert f"{tmp_path}/" in str(caught.value) and not isinstance(caught.value, BadInput)
    assert path.read_bytes() == b"old"
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path]


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from lddgan.pictures import write_images
from lddgan.errors import LddganError
small = np.zeros((2, 8, 8, 3), np.uint8)
large = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_images(Path(sys.argv[1]), [(0, small), (2, large)], lambda _: None)
except LddganError as error:
    print(error)
"""


def test_full_disk_leaves_the_earlier_files_whole(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"cannot write {folder / '000002.png'}: File too large\n"
    assert sorted(p.name for p in folder.iterdir()) == ["000000.png", "000001.png"]
    assert not read(folder / "000001.png").any()


@pytest.mark.parametrize("name", ["x.png", "x.npz", "samples"])
def test_unwritable_folder_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        LddganError, match=r"cannot write .*: (Not a directory|File exists)"
    ) as caught:
        write_images(tmp_path / "file" / name, [(0, pictures(1))], lambda _: None)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


# ---- encoding beside the sampling ----


def test_several_threads_write_the_same_files(tmp_path: Path) -> None:
    images, files = pictures(5, 8, 8), []
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        write_images(folder, in_batches(images, 2, 7), lambda _: None, threads=threads)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1] and len(files[0]) == 5


def test_error_of_an_encoding_thread_is_raised(tmp_path: Path) -> None:
    class Removing:
        """The folder is gone when the second batch comes."""

        def __iter__(self):
            yield 0, pictures(1, 8, 8)
            while not (tmp_path / "samples" / "000000.png").exists():
                time.sleep(0.001)  # a thread that is still at it would make the folder anew
            (tmp_path / "samples").rename(tmp_path / "elsewhere")
            (tmp_path / "samples").write_text("mine")
            yield 1, pictures(2, 8, 8)

    with pytest.raises(LddganError, match=r"cannot write .*: (Not a directory|File exists)"):
        write_images(tmp_path / "samples", Removing(), lambda _: None)


class Later(Executor):
    """Does what was submitted when its result is asked for."""

    def __init__(self) -> None:
        self.unfinished = 0
        self.most = 0

    def submit(self, fn, /, *args, **kwargs):
        self.unfinished += 1
        self.most = max(self.most, self.unfinished)
        executor = self

        class Waiting:
            def result(self):
                executor.unfinished -= 1
                return fn(*args, **kwargs)

        return Waiting()


def test_the_engine_is_at_most_one_batch_ahead(tmp_path: Path) -> None:
    later, unfinished = Later(), []
    heard = lambda size: unfinished.append((size, later.unfinished))  # noqa: E731
    batches = in_batches(pictures(7, 8, 8), 3)
    write_folder(tmp_path, batches, heard, later)
    assert unfinished == [(3, 3), (3, 3), (1, 1)] and later.unfinished == 0
    assert later.most == 6  # while the second batch was handed over
    assert len(list(tmp_path.iterdir())) == 7
