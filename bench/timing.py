"""Timing engines: stages on the device's own clock, warm-up, turns, and a limit on the time."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from engine.sampler import Images, Native, Sampler
from lddgan.errors import LddganError
from lddgan.presets import Frozen

Clock = Callable[[], float]  # seconds
Progress = Callable[[int, int], None]  # trials done, trials asked for

REST = 0.01  # seconds between two looks at whether this process's threads rest
REST_AT_MOST = 1.0  # seconds
WARM_UPS = {"cpu": 1, "cuda": 10}  # runs of each chunk size before any is timed


class Timer(Protocol):
    """Points in time on the device that computes."""

    def mark(self) -> Any:
        """The moment when everything asked of the device so far is done."""

    def milliseconds(self, start: Any, stop: Any) -> float: ...


class HostTimer:
    """The host's clock, read when the device has finished (`synchronize`)."""

    def __init__(
        self, synchronize: Callable[[], Any] = lambda: None, clock: Clock = time.perf_counter
    ) -> None:
        self.synchronize, self.clock = synchronize, clock

    def mark(self) -> float:
        self.synchronize()
        return self.clock()

    def milliseconds(self, start: float, stop: float) -> float:
        return (stop - start) * 1e3


class TorchEvents:
    """CUDA events on torch's current stream."""

    def mark(self) -> Any:
        import torch

        cuda: Any = torch.cuda
        event = cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start: Any, stop: Any) -> float:
        stop.synchronize()
        return float(start.elapsed_time(stop))


def timer_of(sampler: Sampler, device: str) -> Timer:
    """The clock for a backend: its own `timer()`, torch's events, or the host's clock.

    A backend whose calls return before they are done offers `timer` or `synchronize`; ONNX
    Runtime's return when the device has finished.
    """
    backend: Any = sampler.backend
    if hasattr(backend, "timer"):
        return backend.timer()
    if backend.name == "torch" and device == "cuda":
        return TorchEvents()
    return HostTimer(getattr(backend, "synchronize", lambda: None))


class Side(NamedTuple):
    """One of the two that are compared."""

    sampler: Sampler
    timer: Timer


class Trial(NamedTuple):
    """One run of the whole batch, in milliseconds; stages are summed over its chunks."""

    noise: float  # drawn on the host and uploaded
    generator: float  # T steps
    decoder: float
    whole: float  # generator and decoder on uploaded noise: what the paper measures
    download: float  # latents checked for NaN, images to the host
    end_to_end: float  # seed -> uint8 on the host


class Summary(Frozen):
    """Milliseconds; std is the population's, as in the published timing code."""

    p50: float
    p90: float
    p99: float
    mean: float
    std: float


def summarise(milliseconds: Sequence[float]) -> Summary:
    """Percentiles (linear between neighbours), mean and standard deviation of at least one time."""
    p50, p90, p99 = (float(p) for p in np.percentile(milliseconds, (50, 90, 99)))
    return Summary(
        p50=p50,
        p90=p90,
        p99=p99,
        mean=float(np.mean(milliseconds)),
        std=float(np.std(milliseconds)),
    )


class Budget:
    """Seconds since it was made, against a limit."""

    def __init__(self, limit: float, clock: Clock = time.perf_counter) -> None:
        self.limit, self.clock, self.started = limit, clock, clock()

    @property
    def elapsed(self) -> float:
        return self.clock() - self.started

    @property
    def left(self) -> float:
        return self.limit - self.elapsed

    def turns(self, seconds: float, asked: int) -> int:
        """How many of `asked` turns of `seconds` each fit into what is left."""
        if math.isinf(self.left) or seconds * asked <= self.left:
            return asked
        return max(0, int(self.left / seconds))


def chunks_of(batch: int, chunk: int) -> list[tuple[int, int]]:
    """(first, count) of the parts that a batch is run in."""
    return [(first, min(chunk, batch - first)) for first in range(0, batch, chunk)]


def run_trial(side: Side, seed: int, batch: int) -> tuple[Trial, Images]:
    """Time images 0..batch-1 of a seed, from the seed to uint8 on the host, always all of them.

    Raises LddganError if a latent holds NaN or Inf.
    """
    sampler, mark = side.sampler, side.timer.mark
    parts = chunks_of(batch, sampler.chunk)
    marks = [mark()]
    inputs = [sampler.inputs(seed, first, count) for first, count in parts]
    marks.append(mark())
    latents, pictures = [], []
    for part in inputs:
        latents.append(sampler.denoise(part))
        marks.append(mark())
        pictures.append(sampler.decode(latents[-1]))
        marks.append(mark())
    images = _download(sampler, latents, pictures)
    marks.append(mark())
    return _trial(side.timer, marks), images


def _trial(timer: Timer, marks: Sequence[Any]) -> Trial:
    """Marks: start, noise uploaded, then x_0 and images of each chunk, then downloaded."""
    spans = [timer.milliseconds(*pair) for pair in itertools.pairwise(marks)]
    return Trial(
        noise=spans[0],
        generator=sum(spans[1:-1:2]),
        decoder=sum(spans[2:-1:2]),
        whole=timer.milliseconds(marks[1], marks[-2]),
        download=spans[-1],
        end_to_end=timer.milliseconds(marks[0], marks[-1]),
    )


def _download(sampler: Sampler, latents: list[Native], pictures: list[Native]) -> Images:
    backend = sampler.backend
    if not all(np.isfinite(backend.download(x_0)).all() for x_0 in latents):
        raise LddganError(
            f"{sampler.description} gave NaN or Inf, whose time means nothing; "
            "use --precision fp32, or check the weights"
        )
    return np.concatenate([backend.download(image) for image in pictures])


def one_image(side: Side, seed: int) -> float:
    """Seconds from seed to image, the better of two runs: the first pays for what is made once."""
    return min(run_trial(side, seed, 1)[0].end_to_end for _ in range(2)) / 1e3


def warm_up(side: Side, seed: int, batch: int, times: int) -> None:
    """Run every stage for each chunk size that occurs, the ragged last one too."""
    for count in sorted({count for _, count in chunks_of(batch, side.sampler.chunk)}):
        for _ in range(times):
            run_trial(side, seed, count)


def settle() -> None:
    """Wait until this process's threads rest.

    ONNX Runtime's spin for about 60 ms after a run, and would take a core from the other side.
    """
    deadline = time.perf_counter() + REST_AT_MOST
    while time.perf_counter() < deadline:
        used = time.process_time()
        time.sleep(REST)
        if time.process_time() - used < REST / 10:
            return


class Turns(NamedTuple):
    """What each side did, [side][trial], and its images of the first turn."""

    trials: list[list[Trial]]
    images: list[Images]


def take_turns(
    sides: Sequence[Side], seed: int, batch: int, trials: int, budget: Budget, progress: Progress
) -> Turns:
    """Time the sides one after the other, `trials` times or as often as fits into the budget.

    The first turn is always taken; another one if the slowest so far would fit.  Before each run
    the threads of the one before have come to rest.
    """
    taken: list[list[Trial]] = [[] for _ in sides]
    images: list[Images] = []
    slowest = 0.0
    for turn in range(trials):
        if turn and budget.left < slowest:
            break
        started = budget.elapsed
        for side, mine in zip(sides, taken, strict=True):
            settle()
            trial, made = run_trial(side, seed, batch)
            mine.append(trial)
            if turn == 0:
                images.append(made)
        slowest = max(slowest, budget.elapsed - started)
        progress(turn + 1, trials)
    return Turns(taken, images)
