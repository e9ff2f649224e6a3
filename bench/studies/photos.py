"""A small data set of colour photographs that needs no download: python -m bench.studies.photos OUT

32x32 crops of the two photographs that come with scikit-learn, as PNG files in OUT/train/ and
OUT/held-out/. No training crop shares a pixel with a held-out one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lddgan.data.decode import Pixels
from lddgan.errors import BadInput, LddganError
from lddgan.extras import require

SIZE = 32  # side of a crop
STRIDE = 4  # between training crops
EVERY = 5  # one square of so many is held out
TRAIN, HELD_OUT = "train", "held-out"  # folders


class Crop(NamedTuple):
    """A square of SIZE pixels, by its first row and column."""

    top: int
    left: int

    def overlaps(self, other: Crop) -> bool:
        """Whether the two share a pixel."""
        return abs(self.top - other.top) < SIZE and abs(self.left - other.left) < SIZE


class Split(NamedTuple):
    """Numbers of crops."""

    train: int
    held_out: int


def held_out_crops(height: int, width: int) -> list[Crop]:
    """Every fifth square of SIZE, a knight's move apart: about 20 % of the pixels.

    They share no pixel with each other either: precision and recall measure distances to
    neighbours (bench/quality.py). Those of crops that overlap are so short that hardly a
    real crop of another place is as near: of held-out crops 4 pixels apart, precision was below
    0.2 for the training crops.
    """
    return [
        Crop(row * SIZE, column * SIZE)
        for row in range(height // SIZE)
        for column in range(width // SIZE)
        if (2 * row + column) % EVERY == 0
    ]


def train_crops(height: int, width: int) -> list[Crop]:
    """Every crop on a grid of STRIDE that shares no pixel with a held-out one."""
    held_out = held_out_crops(height, width)
    grid = (
        Crop(top, left)
        for top in range(0, height - SIZE + 1, STRIDE)
        for left in range(0, width - SIZE + 1, STRIDE)
    )
    return [crop for crop in grid if not any(crop.overlaps(other) for other in held_out)]


def photographs() -> dict[str, Pixels]:
    """china and flower, both uint8 [427,640,3]. Raises LddganError without scikit-learn."""
    require("sklearn")
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    names = (Path(name).stem for name in found.filenames)
    return dict(zip(names, found.images, strict=True))


def save(folder: Path, name: str, photo: Pixels, crops: Sequence[Crop]) -> None:
    """Write the crops of a photograph [H,W,3], each file named by its row and column."""
    folder.mkdir(parents=True, exist_ok=True)
    for top, left in crops:
        pixels = photo[top : top + SIZE, left : left + SIZE]
        Image.fromarray(pixels).save(folder / f"{name}-{top:03}-{left:03}.png")


def write_photos(out: Path) -> Split:
    """Write both folders, the same each time.

    Raises BadInput if `out` is not empty, LddganError if it cannot be written.
    """
    check_empty(out)
    split = Split(0, 0)
    for name, photo in photographs().items():
        train, held_out = train_crops(*photo.shape[:2]), held_out_crops(*photo.shape[:2])
        try:
            save(out / TRAIN, name, photo, train)
            save(out / HELD_OUT, name, photo, held_out)
        except OSError as error:
            raise LddganError(f"cannot write {out}: {error.strerror}") from error
        split = Split(split.train + len(train), split.held_out + len(held_out))
    return split


def check_empty(out: Path) -> None:
    """Raise BadInput unless `out` is an empty folder or does not exist."""
    if out.is_dir() and any(out.iterdir()):
        raise BadInput(f"{out} already holds something; name a folder that is new or empty")
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file; name a folder that is new or empty")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args(arguments).out
    try:
        split = write_photos(out)
    except LddganError as error:
        sys.exit(f"error: {error}")
    print(f"{split.train} crops in {out / TRAIN}, {split.held_out} in {out / HELD_OUT}")


if __name__ == "__main__":
    main()
