"""Choosing sizes on a GPU: the decoder's chunk by the clock, and which captured graph serves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from engine.timing import median_ms
from lddgan.errors import OutOfMemory

MOST_GRAPHS: Final = 8  # captured sizes that are kept; the one unused for longest is dropped
PARTS: Final = (1, 4)  # into which tuning cuts a batch for the decoder
FEW: Final = (2, 1)  # images whose activations an L2 of 50 MB holds, at 256x256 in fp16
TUNING_RUNS: Final = 3  # of each chunk, after one that is not timed


def chunks_to_try(batch: int, smallest: int) -> list[int]:
    """Ways to cut a batch whose last part is not below `smallest`, the whole batch first.

    Few of them: each is timed, and cuDNN measures its algorithms for each.
    """
    cut = [math.ceil(batch / parts) for parts in PARTS]
    chunks = dict.fromkeys([*cut, *(images for images in FEW if images < batch)])
    return [chunk for chunk in chunks if (batch % chunk or chunk) >= smallest]


def fastest_chunk(timer: Any, decode: Callable[[int], object], batch: int, smallest: int) -> int:
    """The chunk of `chunks_to_try` with which `decode(chunk)` takes the least time.

    The median of TUNING_RUNS counts; chunks that do not fit are passed over.  Raises OutOfMemory
    if none fits.
    """
    chunks = chunks_to_try(batch, smallest)
    if len(chunks) == 1:
        return chunks[0]
    times: dict[int, float] = {}
    refused = None
    for chunk in chunks:
        try:
            times[chunk] = median_ms(timer, partial(decode, chunk), TUNING_RUNS)
        except OutOfMemory as error:
            refused = error
    if refused is not None and not times:
        raise refused
    return min(times, key=times.__getitem__)


def captured_size(captured: Iterable[int], count: int, least: int) -> int:
    """The smallest captured size that holds `count` and is at most twice as large.

    If there is none it is `count`, or the least that the engine takes.  An image is the same to the
    bit in every run of one size.
    """
    fitting = [size for size in captured if count <= size <= 2 * count]
    return min(fitting, default=max(count, least))
