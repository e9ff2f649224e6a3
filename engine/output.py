"""Images -> files: a grid, a folder of PNGs, or one .npz, by the form of the path."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from engine.sampler import Images
from lddgan.errors import BadInput, LddganError
from lddgan.files import atomic_write

COMPRESSION = 1  # of PNGs: level 6 takes 2.5 times as long for 5 % less
SMALLEST_TILE = 64  # pixels; smaller images are enlarged, by whole factors, in a grid only
GAP = 2  # pixels between the tiles of a grid


def check_output(path: Path) -> None:
    """Raise BadInput if images cannot go to `path`: before any is made."""
    if path.suffix in (".png", ".npz"):
        if path.is_dir():
            raise BadInput(f"{path} is a folder; name a file, or a folder without {path.suffix}")
        return
    if path.suffix:
        raise BadInput(f"{path}: images go to a .png (grid), an .npz, or a folder")
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path} exists and is not a folder")
    if path.is_dir() and any(path.iterdir()):
        raise BadInput(f"{path} holds other files; choose an empty or a new folder")


def write_images(
    path: Path, batches: Iterable[Images], first: int, progress: Callable[[int], None]
) -> int:
    """Write uint8 [N,H,W,3] batches to `path`; returns how many images.

    `x.png` is a grid, `x.npz` holds `images` and `first`, anything else is a folder with one PNG
    per image, named by its index.  `progress` hears the size of each batch.
    """
    if path.suffix in (".png", ".npz"):
        arrays = []
        for images in batches:
            arrays.append(images)
            progress(len(images))
        together = np.concatenate(arrays)
        atomic_write(path, png(grid(together)) if path.suffix == ".png" else npz(together, first))
        return len(together)
    index = first
    make_folder(path)
    for images in batches:
        for image in images:
            atomic_write(path / f"{index:06d}.png", png(image))
            index += 1
        progress(len(images))
    return index - first


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LddganError(f"cannot write {path}: {error.strerror}") from error


def png(image: Images) -> bytes:
    """uint8 [H,W,3] -> a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=COMPRESSION)
    return buffer.getvalue()


def npz(images: Images, first: int) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=images, first=np.int64(first))
    return buffer.getvalue()


def grid(images: Images) -> Images:
    """uint8 [N,H,W,3] -> one picture, as square as N allows, rows first."""
    count, height, width, _ = images.shape
    factor = max(1, math.ceil(SMALLEST_TILE / height))
    tiles = images.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    pitch = (height * factor + GAP, width * factor + GAP)
    canvas = np.full((rows * pitch[0] + GAP, columns * pitch[1] + GAP, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top = GAP + (index // columns) * pitch[0]
        left = GAP + (index % columns) * pitch[1]
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas
