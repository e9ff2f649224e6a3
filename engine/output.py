"""Images -> files: a grid, a folder of PNGs, or one .npz, by the form of the path."""

from __future__ import annotations

import io
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.backend import Images
from lddgan.errors import BadInput, LddganError
from lddgan.files import atomic_write
from lddgan.pictures import grid
from lddgan.progress import Log, to_stderr

COMPRESSION = 1  # of PNGs: level 6 takes 2.5 times as long for 5 % less
MUCH = 0.1  # of the time; so long may PNGs hold up the engine before it is said
LONG = 5.0  # seconds; shorter runs are not worth a word

clock = time.perf_counter


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
    path: Path,
    batches: Iterable[Images],
    first: int,
    progress: Callable[[int], None],
    *,
    origin: str = "",
    processes: int = 0,
    log: Log = to_stderr,
) -> int:
    """Write uint8 [N,H,W,3] batches to `path`; returns how many images.

    `x.png` is a grid, `x.npz` holds `images`, `first` and `origin` (how they were made, as
    `engine.kept_images` reads it), anything else is a folder with one PNG
    per image, named by its index.  `progress` hears the size of each batch.  `processes` encode the
    PNGs of a folder while the next batch is made; with 0 it is done here, between the batches.
    """
    if path.suffix in (".png", ".npz"):
        arrays = []
        for images in batches:
            arrays.append(images)
            progress(len(images))
        together = np.concatenate(arrays)
        arrays.clear()  # they are as large as `together`
        atomic_write(
            path, png(grid(together)) if path.suffix == ".png" else npz(together, first, origin)
        )
        return len(together)
    make_folder(path)
    with encoders(processes) as executor:
        return write_folder(path, batches, first, progress, executor, log)


def write_folder(
    path: Path,
    batches: Iterable[Images],
    first: int,
    progress: Callable[[int], None],
    executor: Executor,
    log: Log,
) -> int:
    """One PNG per image, by `executor`, at most one batch behind; returns how many."""
    index, began, held_up = first, clock(), 0.0
    pending: deque[Future[Path]] = deque()
    for images in batches:
        made = clock()
        for image in images:
            pending.append(executor.submit(write_png, path / f"{index:06d}.png", image))
            index += 1
        settle(pending, len(images))
        held_up += clock() - made
        progress(len(images))
    made = clock()
    settle(pending, 0)
    ended = clock()
    share = (held_up + ended - made) / (ended - began)
    if share > MUCH and ended - began > LONG:
        log(f"PNGs are the limit: {share:.0%} of the time went to encoding and writing them")
    return index - first


def settle(pending: deque[Future[Path]], most: int) -> None:
    """Wait until at most `most` PNGs are unfinished. Raises LddganError for one that failed."""
    while len(pending) > most:
        pending.popleft().result()


def write_png(path: Path, image: Images) -> Path:
    return atomic_write(path, png(image))


class Here(Executor):
    """Does at once what is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def encoders(processes: int) -> Executor:
    """Processes that encode PNGs (Pillow holds the interpreter's lock), or none: here."""
    if processes == 0:
        return Here()
    # Not forked: a GPU's driver does not survive that.
    fresh = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, fresh, initializer=ignore_interrupt)


def ignore_interrupt() -> None:
    """Ctrl-C is for the process that feeds the encoders; what is begun is finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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


def npz(images: Images, first: int, origin: str) -> memoryview:
    """uint8 [N,H,W,3], the index of the first and how they were made -> an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, images=images, first=np.int64(first), origin=np.array(origin))
    return buffer.getbuffer()
