"""Timing engines: stages on the device's own clock, warm-up, turns, and a limit on the time."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from engine.backend import Images, Made
from engine.sampler import Sampler, equal_parts
from engine.timing import Clock, HostTimer, Timer, median_ms
from lddgan.errors import OutOfMemory
from lddgan.frozen import Frozen
from lddgan.names import Device
from lddgan.progress import Log

Progress = Callable[[int, int], None]  # trials done, trials asked for
Part = tuple[int, int]  # first, count

REST_SECONDS: Final = 0.01  # between two looks at whether this process's threads rest
MAX_REST_SECONDS: Final = 1.0
WARM_UPS: Final = {"cpu": 2, "cuda": 3}  # runs of each chunk size before any is timed


class Plan(NamedTuple):
    """What is to be measured."""

    device: Device
    batch: int
    trials: int
    seed: int
    max_seconds: float


class Trial(NamedTuple):
    """One run of the whole batch, in milliseconds; stages are summed over its chunks.

    If the engine replays a CUDA graph, noise, generator and decoder are of the same steps launched
    one by one; the rest is of the one launch, which draws its noise itself.
    """

    noise: float  # drawn, and uploaded if drawn on the host
    generator: float  # T steps
    decoder: float
    whole: float  # generator and decoder: what the paper measures; of one launch, the noise too
    download: float  # latents checked for NaN, images to the host
    end_to_end: float  # seed -> uint8 on the host


class Side(NamedTuple):
    """An engine or its baseline, measured."""

    sampler: Sampler
    trials: list[Trial]
    images: Images  # of the first trial
    peak_memory_mib: float | None = None  # when it was warm, as the next one
    gpu_memory_mib: float | None = None


class Summary(Frozen):
    """Milliseconds; std is the population's, as in the published timing code."""

    p50: float
    p90: float
    p99: float
    mean: float
    std: float


def summarise(milliseconds: Sequence[float]) -> Summary:
    """Percentiles (linear between neighbours), mean and standard deviation of at least one time."""
    p50, p90, p99 = np.percentile(milliseconds, (50, 90, 99))
    mean, std = float(np.mean(milliseconds)), float(np.std(milliseconds))
    return Summary(p50=p50, p90=p90, p99=p99, mean=mean, std=std)


def seconds(value: float) -> str:
    """A duration for people."""
    return f"{value:.0f} s" if value >= 100 else f"{value:.2g} s"


class Budget:
    """A limit on the seconds since it was made, `gone` ones before that included."""

    def __init__(self, limit: float, clock: Clock = time.perf_counter, gone: float = 0.0) -> None:
        self.limit, self.clock, self.started = limit, clock, clock() - gone

    @property
    def elapsed(self) -> float:
        return self.clock() - self.started

    @property
    def left(self) -> float:
        return self.limit - self.elapsed


def run_trial(sampler: Sampler, seed: int, batch: int) -> tuple[Trial, Images]:
    """Time images 0..batch-1 of a seed, from the seed to uint8 on the host.

    Raises LddganError if a latent holds NaN or Inf, OutOfMemory if a chunk does not fit: no smaller
    one is tried.
    """
    timer, one_launch = sampler.backend.timer(), sampler.backend.captures
    sizes = equal_parts(batch, sampler.chunk)
    parts = list(zip(itertools.accumulate(sizes[:-1], initial=0), sizes, strict=True))
    marks, found = [timer.mark()], []
    for part in parts:
        if one_launch:
            made = sampler.make(seed, *part)
            marks.append(timer.mark())
        else:
            made = run_stages(sampler, timer, seed, part, marks)
        found.append(Made(*map(sampler.backend.download, made)))
        marks.append(timer.mark())
    apart = [timer.mark()] if one_launch else marks
    if one_launch:
        for part in parts:
            run_stages(sampler, timer, seed, part, apart)
    x_0, images = map(np.concatenate, zip(*found, strict=True))
    sampler.check(x_0, images)
    spans, steps = (
        [timer.milliseconds(*pair) for pair in itertools.pairwise(each)] for each in (marks, apart)
    )
    noise, generator, decoder = (sum(steps[stage :: 3 if one_launch else 4]) for stage in range(3))
    whole = sum(spans[::2]) if one_launch else generator + decoder
    download = sum(spans[1::2]) if one_launch else sum(spans[3::4])
    end_to_end = timer.milliseconds(marks[0], marks[-1])
    return Trial(noise, generator, decoder, whole, download, end_to_end), images


def run_stages(sampler: Sampler, timer: Timer, seed: int, part: Part, marks: list[object]) -> Made:
    """Make one chunk step by step; adds marks after noise, generator and decoder."""
    inputs = sampler.inputs(seed, *part)
    marks.append(timer.mark())
    x_0 = sampler.denoise(inputs)
    marks.append(timer.mark())
    image = sampler.decode(x_0)
    marks.append(timer.mark())
    return Made(x_0, image)


def warm_up(sampler: Sampler, plan: Plan, log: Log, clock: Clock = time.perf_counter) -> float:
    """Run every chunk size of the batch. Returns the seconds that a trial takes, about.

    Begins again with half the images at once while memory is too small. Raises OutOfMemory if the
    least that the engine takes does not fit.
    """
    timer, runs = HostTimer(clock), WARM_UPS[plan.device] - 1  # after a first one, not timed
    while True:
        sizes = Counter(equal_parts(plan.batch, sampler.chunk))
        try:
            return sum(
                times * median_ms(timer, partial(run_trial, sampler, plan.seed, size), runs) / 1e3
                for size, times in sizes.items()
            )
        except OutOfMemory as error:
            size = max(sizes)
            if size // 2 < sampler.backend.least:
                raise
            sampler.chunk = size // 2
            log(f"{error}; measured with {sampler.chunk} images at once instead of {size}")


def settle() -> None:
    """Wait until this process's threads rest: ONNX Runtime's spin for about 60 ms after a run."""
    deadline = time.perf_counter() + MAX_REST_SECONDS
    while time.perf_counter() < deadline:
        used = time.process_time()
        time.sleep(REST_SECONDS)
        if time.process_time() - used < REST_SECONDS / 10:
            return


def turns_within(budget: Budget, trials: int) -> Iterator[int]:
    """Numbers of the turns that fit: the first always, another one if the slowest so far would."""
    slowest = 0.0
    for turn in range(trials):
        if turn and budget.left < slowest:
            return
        started = budget.elapsed
        yield turn
        slowest = max(slowest, budget.elapsed - started)


def take_turns(
    samplers: Sequence[Sampler],
    plan: Plan,
    budget: Budget,
    progress: Progress = lambda _done, _asked: None,
) -> list[Side]:
    """Time samplers one after the other, `plan.trials` times or as often as fits in the budget."""
    trials: list[list[Trial]] = [[] for _ in samplers]
    images: list[Images] = []
    for turn in turns_within(budget, plan.trials):
        for sampler, mine in zip(samplers, trials, strict=True):
            settle()
            trial, made = run_trial(sampler, plan.seed, plan.batch)
            mine.append(trial)
            if turn == 0:
                images.append(made)
        progress(turn + 1, plan.trials)
    return [Side(*each) for each in zip(samplers, trials, images, strict=True)]
