"""Images -> files: a grid, a folder of PNGs, or one .npz."""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lddgan.errors import BadInput
from lddgan.files import atomic_write, refuse_used, writing
from lddgan.workers import start_pool

TILE_PIXELS: Final = 64  # a grid enlarges smaller images, by whole factors
GAP_PIXELS: Final = 2  # between tiles
PNG_LEVEL: Final = 1  # of compression: level 6 takes 2.5 times as long for 5 % less

Pixels = NDArray[np.uint8]


def grid(images: Pixels) -> Pixels:
    """uint8 [N,H,W,3] -> one picture [H',W',3], as square as N allows, rows first."""
    count, height, width, _ = images.shape
    factor = max(1, math.ceil(TILE_PIXELS / height))
    tiles = images.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    gap, none = (GAP_PIXELS, 0), (0, 0)
    tiles = np.pad(tiles, ((0, rows * columns - count), gap, gap, none), constant_values=255)
    _, height, width, _ = tiles.shape
    lines = tiles.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    canvas = lines.reshape(rows * height, columns * width, 3)
    return np.pad(canvas, (gap[::-1], gap[::-1], none), constant_values=255)


def png(image: Pixels) -> bytes:
    """uint8 [H,W,3] -> a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def npz(images: Pixels, first: int, origin: str) -> memoryview:
    """uint8 [N,H,W,3], the index of the first and how they were made -> an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, images=images, first=np.int64(first), origin=np.array(origin))
    return buffer.getbuffer()


def check_output(path: Path) -> None:
    """Raise BadInput if images cannot be written to `path`. To be called before any is made."""
    if path.suffix in (".png", ".npz"):
        if path.is_dir():
            raise BadInput(f"{path} is a folder; name a file, or a folder without {path.suffix}")
        return
    if path.suffix:
        raise BadInput(f"{path}: images go to a .png (grid), an .npz, or a folder")
    refuse_used(path)


def write_images(
    path: Path,
    batches: Iterable[Pixels],
    first: int,
    progress: Callable[[int], None],
    *,
    origin: str = "",
    processes: int = 0,
) -> None:
    """Write uint8 [N,H,W,3] batches to `path`.

    `x.png` is a grid; `x.npz` holds `images`, `first` and `origin` (how they were made, as
    `engine.kept_images` reads it); any other path is a folder with one PNG per image, named by its
    index.  Calls `progress` with the size of each batch.  `processes` (0: a thread) encode the PNGs
    of a folder while the next batch is made.  Raises LddganError if the disk fails.
    """
    if path.suffix in (".png", ".npz"):
        arrays = []
        for images in batches:
            arrays.append(images)
            progress(len(images))
        together = np.concatenate(arrays)
        arrays.clear()  # they are as large as `together`
        is_grid = path.suffix == ".png"
        atomic_write(path, png(grid(together)) if is_grid else npz(together, first, origin))
        return
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    # Pillow holds the interpreter's lock: several threads would not help.
    with start_pool(processes) if processes else ThreadPoolExecutor(1) as executor:
        write_folder(path, batches, first, progress, executor)


def write_folder(
    path: Path,
    batches: Iterable[Pixels],
    first: int,
    progress: Callable[[int], None],
    executor: Executor,
) -> None:
    """Write one PNG per image with `executor`, at most one batch behind."""
    pending: deque[Future[None]] = deque()
    index = first
    for images in batches:
        for image in images:
            pending.append(executor.submit(write_png, path / f"{index:06d}.png", image))
            index += 1
        wait_for(pending, len(images))
        progress(len(images))
    wait_for(pending, 0)


def wait_for(pending: deque[Future[None]], most: int) -> None:
    """Wait until at most `most` PNGs are unfinished. Raises LddganError for one that failed."""
    while len(pending) > most:
        pending.popleft().result()


def write_png(path: Path, image: Pixels) -> None:
    atomic_write(path, png(image))
