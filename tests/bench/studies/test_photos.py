"""The photographs: crops that share no pixel across the split, the same each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.studies import photos
from bench.studies.photos import SIZE, Crop, held_out_crops, main, train_crops, write_photos
from lddgan.data.open_source import open_source
from lddgan.errors import BadInput, LddganError

SHAPE = (427, 640)  # of both photographs


def times_covered(crops: list[Crop], height: int, width: int) -> np.ndarray:
    """In how many crops each pixel is. Fails for a crop that reaches beyond the edges."""
    count = np.zeros((height, width), int)
    for top, left in crops:
        square = count[top : top + 32, left : left + 32]
        assert top >= 0 and left >= 0 and square.shape == (32, 32)
        square += 1
    return count


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """One photograph of 128x160 instead of the two."""
    (photo, *_) = photos.photographs().values()
    cut = {"cut": photo[100:228, 60:220]}
    monkeypatch.setattr(photos, "photographs", lambda: cut)
    return cut


@pytest.mark.parametrize("shape", [SHAPE, (32, 32), (31, 400), (100, 70), (64, 321), (33, 95)])
def test_no_pixel_is_in_both_parts(shape: tuple[int, int]) -> None:
    train = times_covered(train_crops(*shape), *shape)
    held_out = times_covered(held_out_crops(*shape), *shape)
    assert not ((train > 0) & (held_out > 0)).any()
    assert held_out.max() <= 1


def test_nearly_every_pixel_is_in_one() -> None:
    train, held_out = train_crops(*SHAPE), held_out_crops(*SHAPE)
    assert (len(train), len(held_out)) == (4643, 52)
    assert len(set(train)) == len(train)
    assert (times_covered(held_out, *SHAPE) > 0).mean() == pytest.approx(0.195, abs=0.001)
    assert (times_covered(train, *SHAPE) > 0).mean() == pytest.approx(0.794, abs=0.001)


def test_every_crop_of_the_grid_that_is_free_is_taken() -> None:
    height, width = 100, 140
    taken = times_covered(held_out_crops(height, width), height, width)
    free = [
        (top, left)
        for top in range(0, height - 31, 4)
        for left in range(0, width - 31, 4)
        if not taken[top : top + 32, left : left + 32].any()
    ]
    assert train_crops(height, width) == free


def test_a_photograph_that_is_too_small_has_no_crops() -> None:
    assert train_crops(31, 640) == held_out_crops(31, 640) == []


def test_the_photographs_are_in_colour() -> None:
    found = photos.photographs()
    assert list(found) == ["china", "flower"]
    for photo in found.values():
        assert photo.shape == (*SHAPE, 3) and photo.dtype == np.uint8
        assert np.ptp(photo, axis=2).mean() > 20  # of the channels of a pixel


def test_files_hold_the_pixels_that_their_names_say(
    small: dict[str, np.ndarray], tmp_path: Path
) -> None:
    shape = small["cut"].shape[:2]
    written = write_photos(tmp_path)
    assert [*written.values()] == [len(train_crops(*shape)), len(held_out_crops(*shape))]
    for part, count in written.items():
        files = sorted((tmp_path / part).iterdir())
        assert len(files) == len(open_source(tmp_path / part)) == count > 0
        for file in files:
            name, top, left = file.stem.split("-")
            expected = small[name][int(top) :, int(left) :][:SIZE, :SIZE]
            assert np.array_equal(np.asarray(Image.open(file)), expected)


@pytest.mark.usefixtures("small")
def test_the_files_are_the_same_each_time(tmp_path: Path) -> None:
    def content(out: Path) -> dict[str, bytes]:
        write_photos(out)
        return {str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*.png")}

    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_both_photographs_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: list[str] = []

    def save(folder: Path, name: str, photo: np.ndarray, crops: list[Crop]) -> None:
        saved.append(f"{folder.name} {name} {len(crops)}")

    monkeypatch.setattr(photos, "save", save)
    assert write_photos(tmp_path) == {"train": 9286, "held-out": 104}
    expected = ["train china 4643", "held-out china 52", "train flower 4643", "held-out flower 52"]
    assert saved == expected
    main([str(tmp_path)])
    assert capsys.readouterr().out == (
        f"9286 crops in {tmp_path / 'train'}, 104 crops in {tmp_path / 'held-out'}\n"
    )


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    for taken in (tmp_path, tmp_path / "note"):
        with pytest.raises(BadInput, match=r"is not an empty folder; name one that is new"):
            write_photos(taken)
    with pytest.raises(LddganError, match=r"^cannot write .*Not a directory$"):
        write_photos(tmp_path / "note" / "below")
    assert [file.name for file in tmp_path.iterdir()] == ["note"]
    with pytest.raises(SystemExit, match=r"^error: .* is not an empty folder"):
        main([str(tmp_path)])


def test_scikit_learn_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lddgan.extras.find_spec", lambda name: None)
    with pytest.raises(LddganError, match=r"^sklearn is not installed; pip install"):
        write_photos(tmp_path / "new")
    assert not (tmp_path / "new").exists()
