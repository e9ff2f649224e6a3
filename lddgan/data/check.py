"""Checking every image of a source before it is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from lddgan.data.decode import BadImage, fit
from lddgan.data.sources import Source
from lddgan.progress import start_pool

CHUNK: Final = 64  # images that a process checks before it reports


def check_images(source: Source, size: int, processes: int) -> Iterator[str | None]:
    """Yield for each image of a source why none of `size` can be made of it, or None."""
    with start_pool(processes) as pool:
        yield from pool.map(partial(check, source, size), range(len(source)), chunksize=CHUNK)


def check(source: Source, size: int, index: int) -> str | None:
    """Name an image and say why it cannot be trained on. Returns None if it can."""
    try:
        fit(source.read(index), size)
    except BadImage as error:
        return f"{source.name(index)} {error}"
    return None
