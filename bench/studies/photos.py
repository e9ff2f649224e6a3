"""A small data set of colour photographs that needs no download: python -m bench.studies.photos OUT

32x32 crops of the two photographs that come with scikit-learn, as PNG files in OUT/train/ and
OUT/held-out/. No training crop shares a pixel with a held-out one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from lddgan.data.decode import Pixels
from lddgan.errors import BadInput, LddganError
from lddgan.extras import require

SIZE: Final = 32  # side of a crop
STRIDE: Final = 4  # between training crops
EVERY: Final = 5  # one square of so many is held out

Crop = tuple[int, int]  # first row and column of a square of SIZE pixels


def held_out_crops(height: int, width: int) -> list[Crop]:
    """Every fifth square of SIZE, a knight's move apart: about 20 % of the pixels.

    They share no pixel with each other either: precision and recall measure distances to
    neighbours (bench/quality.py). Those of crops that overlap are so short that hardly a
    real crop of another place is as near: of held-out crops 4 pixels apart, precision was below
    0.2 for the training crops.
    """
    return [
        (row * SIZE, column * SIZE)
        for row in range(height // SIZE)
        for column in range(width // SIZE)
        if (2 * row + column) % EVERY == 0
    ]


def train_crops(height: int, width: int) -> list[Crop]:
    """Every crop on a grid of STRIDE that shares no pixel with a held-out one."""
    taken = np.zeros((height, width), bool)
    for top, left in held_out_crops(height, width):
        taken[top : top + SIZE, left : left + SIZE] = True
    return [
        (top, left)
        for top in range(0, height - SIZE + 1, STRIDE)
        for left in range(0, width - SIZE + 1, STRIDE)
        if not taken[top : top + SIZE, left : left + SIZE].any()
    ]


PARTS: Final = {"train": train_crops, "held-out": held_out_crops}  # folders


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


def write_photos(out: Path) -> dict[str, int]:
    """Write both folders, the same each time. Returns the number of crops in each.

    Raises BadInput if `out` is not empty, LddganError if it cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput(f"{out} is not an empty folder; name one that is new or empty")
    written = dict.fromkeys(PARTS, 0)
    for name, photo in photographs().items():
        for part, crops_of in PARTS.items():
            crops = crops_of(*photo.shape[:2])
            try:
                save(out / part, name, photo, crops)
            except OSError as error:
                raise LddganError(f"cannot write {out}: {error.strerror}") from error
            written[part] += len(crops)
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args(arguments).out
    try:
        written = write_photos(out)
    except LddganError as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{count} crops in {out / part}" for part, count in written.items()))


if __name__ == "__main__":
    main()
