"""Images -> files: a grid, a folder of PNGs, or one .npz."""

from __future__ import annotations

import io
import math
import shutil
import zipfile
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lddgan.errors import BadInput
from lddgan.files import atomic_file, atomic_write, beside_of, place_of, writing

TILE_PIXELS: Final = 64  # a grid enlarges smaller images, by whole factors
GAP_PIXELS: Final = 2  # between tiles
PNG_LEVEL: Final = 1  # of compression: level 6 takes 2.5 times as long for 5 % less

FILES: Final = (  # that are no folder's name; a version or a date is one
    *(".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".mp4", ".webm"),
    *(".npy", ".zip", ".tar", ".tgz", ".gz", ".xz", ".zst", ".7z", ".pt", ".safetensors"),
)

Form = Literal["grid", "array", "folder"]
Pixels = NDArray[np.uint8]
Batch = tuple[int, Pixels]  # the index of the first image, uint8 [N,H,W,3]


def grid(images: Pixels, columns: int | None = None) -> Pixels:
    """uint8 [N,H,W,3] -> one picture [H',W',3], rows first. Default: as square as N allows."""
    count, height, width, _ = images.shape
    factor = max(1, math.ceil(TILE_PIXELS / height))
    tiles = images.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = columns or math.ceil(math.sqrt(count))
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


def form_of(path: Path) -> Form:
    """What is written to `path`. Raises BadInput if images cannot be."""
    suffix = path.suffix.lower()
    if place_of(path).is_dir():
        return "folder"
    if suffix in FILES:
        raise BadInput(f"{path}: images go to a .png (grid), an .npz, or a folder")
    return "grid" if suffix == ".png" else "array" if suffix == ".npz" else "folder"


def parts_folder(path: Path) -> Path:
    """Where images are until all are made: in `path`, or hidden beside an .npz."""
    return path if form_of(path) == "folder" else beside_of(place_of(path), ".parts")


def indices(folder: Path, *, check: bool = True) -> set[int]:
    """The indices of the images in the PNGs or parts of a folder; `check`: without damaged ones."""
    found: set[int] = set()
    for path in folder.glob("[0-9]*.*"):
        with suppress(OSError, SyntaxError, ValueError, EOFError):  # of numpy and Pillow
            count = 1
            if path.suffix == ".npy":
                count = len(np.load(path, mmap_mode="r"))
            elif check:
                with Image.open(path) as picture:
                    picture.verify()
            found.update(range(int(path.stem), int(path.stem) + count))
    return found


def write_images(
    path: Path,
    batches: Iterable[Batch],
    progress: Callable[[int], None],
    *,
    origin: str = "",
    threads: int = 1,
) -> None:
    """Write batches of images to `path`.

    `x.png` is a grid; `x.npz` holds `images`, the index of the `first` and `origin` (how they were
    made, as `engine.kept_images` reads it); else it is a folder with one PNG per image, named by
    its index.  Calls `progress` with the size of each batch.  If that stops, PNGs and the batches
    of an .npz stay in `parts_folder`, and a later call writes the others.  `threads` encode the
    PNGs of a folder while the next batch is made.  Raises LddganError if the disk fails.
    """
    form, parts = form_of(path), parts_folder(path)
    if form == "grid":
        arrays = []
        for _, images in batches:
            arrays.append(images)
            progress(len(images))
        atomic_write(path, png(grid(np.concatenate(arrays))))
    elif form == "array":
        for start, images in batches:
            with atomic_file(parts / f"{start:06d}.npy") as file:
                np.save(file, images)
            progress(len(images))
        join_parts(path, origin)
        shutil.rmtree(parts)
    else:
        with writing(path):
            parts.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(threads) as executor:
            write_folder(path, batches, progress, executor)


def join_parts(path: Path, origin: str) -> None:
    """Write the .npz of its parts, one of them in memory at a time."""
    parts = sorted(parts_folder(path).glob("[0-9]*.npy"), key=lambda part: int(part.stem))
    shape = (len(indices(parts_folder(path))), *np.load(parts[0]).shape[1:])
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as held:

        def member(name: str) -> Any:
            return held.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)

        with member("images") as images:
            fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(images, fields)
            for part in parts:
                images.write(np.load(part).data)
        for name, value in (("first", np.int64(int(parts[0].stem))), ("origin", np.array(origin))):
            with member(name) as other:
                np.lib.format.write_array(other, np.asarray(value))


def write_folder(
    path: Path, batches: Iterable[Batch], progress: Callable[[int], None], executor: Executor
) -> None:
    """Write one PNG per image with `executor`, at most one batch behind."""
    pending: deque[Future[None]] = deque()
    for start, images in batches:
        for index, image in enumerate(images, start):
            pending.append(executor.submit(write_png, path / f"{index:06d}.png", image))
        wait_for(pending, len(images))
        progress(len(images))
    wait_for(pending, 0)


def wait_for(pending: deque[Future[None]], most: int) -> None:
    """Wait until at most `most` PNGs are unfinished. Raises LddganError for one that failed."""
    while len(pending) > most:
        pending.popleft().result()


def write_png(path: Path, image: Pixels) -> None:
    atomic_write(path, png(image))
