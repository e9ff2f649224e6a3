"""Clocks: the host's, and PyTorch's events on a GPU. TensorRT's are those of engine/gpu."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

Clock = Callable[[], float]  # seconds


class Timer(Protocol):
    """Marks in a stream of work, and the time between two of them."""

    def mark(self) -> Any: ...
    def milliseconds(self, start: Any, stop: Any) -> float: ...


class HostTimer:
    """The host's clock, for calls that return when the work is done."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock = clock

    def mark(self) -> float:
        return self.clock()

    def milliseconds(self, start: float, stop: float) -> float:
        return (stop - start) * 1e3


class TorchEvents:
    """CUDA events on PyTorch's current stream."""

    def mark(self) -> Any:
        import torch

        cuda: Any = torch.cuda
        event = cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start: Any, stop: Any) -> float:
        stop.synchronize()
        return float(start.elapsed_time(stop))


def torch_timer(device: str) -> Timer:
    """The clock for PyTorch's work on `device`."""
    return TorchEvents() if device == "cuda" else HostTimer()


def median_ms(timer: Timer, run: Callable[[], object], runs: int, warm_ups: int = 1) -> float:
    """Median milliseconds of `runs` calls, after `warm_ups` that are not timed."""
    for _ in range(warm_ups):
        run()
    marks = [timer.mark()]
    for _ in range(runs):
        run()
        marks.append(timer.mark())
    return median(timer.milliseconds(*span) for span in itertools.pairwise(marks))
