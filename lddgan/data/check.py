"""Checking every image of a source before it is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple

from lddgan.data.decode import BadImage, fit
from lddgan.data.sources import Source
from lddgan.progress import start_pool

CHUNK: Final = 64  # images that a process checks before it reports


class Checked(NamedTuple):
    """Some images of a source."""

    images: int
    bad: list[str]  # name and reason of those that cannot be trained on


def check_images(source: Source, size: int, processes: int) -> Iterator[Checked]:
    """Check that images of `size` can be made of all images of a source, in their order."""
    parts = [
        range(first, min(first + CHUNK, len(source))) for first in range(0, len(source), CHUNK)
    ]
    with start_pool(processes) as pool:
        yield from pool.map(partial(check_part, source, size), parts)


def check_part(source: Source, size: int, part: range) -> Checked:
    """Check the images of some indices."""
    bad = []
    for index in part:
        try:
            fit(source.read(index), size)
        except BadImage as error:
            bad.append(f"{source.name(index)} {error}")
    return Checked(len(part), bad)
