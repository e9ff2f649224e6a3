"""Looking at every image of a source before it is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Final, NamedTuple

from lddgan.data.decode import BadImage, fit
from lddgan.data.sources import Source

AT_ONCE: Final = 64  # images that a process looks at before it tells


class Looked(NamedTuple):
    """Some images of a source."""

    images: int
    bad: list[str]  # name and reason of those that cannot be trained on


def look(source: Source, size: int, processes: int) -> Iterator[Looked]:
    """All images of a source in their order, looked at by `processes`; they must give `size`."""
    parts = [
        range(first, min(first + AT_ONCE, len(source))) for first in range(0, len(source), AT_ONCE)
    ]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(look_at, source, size), parts)


def look_at(source: Source, size: int, part: range) -> Looked:
    """The images of some indices."""
    bad = []
    for index in part:
        try:
            fit(source.read(index), size)
        except BadImage as error:
            bad.append(f"{source.name(index)} {error}")
    return Looked(len(part), bad)
