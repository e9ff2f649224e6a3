"""Choosing sizes on a GPU: the decoder's chunk by the clock, and which captured graph serves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, Final

from lddgan.errors import OutOfMemory

MOST_GRAPHS: Final = 8  # captured sizes that are kept; the one unused for longest is dropped
PARTS: Final = (1, 2, 3, 4, 5, 8, 10, 20)  # into which tuning cuts a batch for the decoder
TUNING_RUNS: Final = 3  # of each, after one that is not timed


def chunks_to_try(batch: int, smallest: int) -> list[int]:
    """Ways to cut a batch whose last part is not below `smallest`, the whole batch first."""
    chunks = dict.fromkeys(math.ceil(batch / parts) for parts in PARTS)
    return [chunk for chunk in chunks if (batch % chunk or chunk) >= smallest]


def fastest_chunk(chunks: Iterable[int], time_of: Callable[[int], float]) -> int:
    """The chunk whose median of TUNING_RUNS times is least; those that do not fit are passed over.

    Raises OutOfMemory if none fits.
    """
    times: dict[int, float] = {}
    refused = None
    for chunk in chunks:
        try:
            times[chunk] = median(time_of(chunk) for _ in range(TUNING_RUNS))
        except OutOfMemory as error:
            refused = error
    if refused is not None and not times:
        raise refused
    return min(times, key=times.__getitem__)


def milliseconds(timer: Any, run: Callable[[], object]) -> float:
    """Time of a run, after one that is not timed."""
    run()
    start = timer.mark()
    run()
    return float(timer.milliseconds(start, timer.mark()))


def captured_size(captured: Iterable[int], count: int, least: int) -> int:
    """The smallest captured size that holds `count` and is at most twice as large.

    If there is none it is `count`, or the least that the engine takes.  An image is the same to the
    bit in every run of one size.
    """
    fitting = [size for size in captured if count <= size <= 2 * count]
    return min(fitting, default=max(count, least))
