"""Sizes on a GPU: the decoder's chunk by the clock, and which captured graph serves."""

from __future__ import annotations

import pytest

from engine.graphed import captured_size, chunks_to_try, fastest_chunk
from lddgan.errors import OutOfMemory
from tests.engine.stopwatch import Stopwatch


def test_ways_to_cut_a_batch() -> None:
    assert chunks_to_try(100, 1) == [100, 25, 2, 1]
    assert chunks_to_try(100, 100) == [100]
    assert chunks_to_try(10, 3) == [10]  # 3 would leave 1
    assert [chunks_to_try(few, 1) for few in (1, 2, 3)] == [[1], [2, 1], [3, 1, 2]]


def test_chunks_that_do_not_fit_are_passed_over() -> None:
    clock = Stopwatch({20: 1.0, 5: 1.0, 2: 2.0, 1: 3.0}, largest=4)
    assert fastest_chunk(clock, clock.run, 20, 1) == 2
    with pytest.raises(OutOfMemory, match="too little"):
        fastest_chunk(clock, clock.run, 20, 5)


def test_the_first_run_of_a_chunk_is_not_timed() -> None:
    clock = Stopwatch({20: 1.0, 5: 2.0, 2: 2.0, 1: 2.0}, first=50.0)
    assert fastest_chunk(clock, clock.run, 20, 1) == 20


@pytest.mark.parametrize(
    ("captured", "count", "least", "size"),
    [([], 3, 1, 3), ([], 3, 4, 4), ([4, 6], 3, 1, 4), ([7], 3, 1, 3), ([2], 3, 1, 3)],
)
def test_the_captured_size_that_serves(captured, count: int, least: int, size: int) -> None:
    assert captured_size(captured, count, least) == size
