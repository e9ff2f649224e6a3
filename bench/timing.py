"""Timing engines: stages on the device's own clock, warm-up, turns, and a limit on the time."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from engine.backend import Images, Made
from engine.sampler import Sampler, equal_parts
from engine.timing import Clock, Timer
from lddgan.errors import OutOfMemory
from lddgan.frozen import Frozen
from lddgan.progress import Log

Progress = Callable[[int, int], None]  # trials done, trials asked for
Part = tuple[int, int]  # first, count
T = TypeVar("T")

REST = 0.01  # seconds between two looks at whether this process's threads rest
REST_AT_MOST = 1.0  # seconds
WARM_UPS = {"cpu": 1, "cuda": 3}  # runs of each chunk size before any is timed


class Side(NamedTuple):
    """One of the two that are compared."""

    sampler: Sampler
    timer: Timer


class Plan(NamedTuple):
    """What is to be measured."""

    device: Literal["cpu", "cuda"]
    batch: int
    trials: int
    seed: int
    max_seconds: float


class Opened(NamedTuple):
    """A side that is warm."""

    side: Side
    peak_memory_mib: float | None
    gpu_memory_mib: float | None


class Trial(NamedTuple):
    """One run of the whole batch, in milliseconds; stages are summed over its chunks.

    Of a fused engine, noise, generator and decoder are of the same steps launched one by one, and
    the rest is of the one launch, which draws its noise itself.
    """

    noise: float  # drawn, and uploaded if drawn on the host
    generator: float  # T steps
    decoder: float
    whole: float  # generator and decoder: what the paper measures; of one launch, the noise too
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


def seconds(value: float) -> str:
    """A duration for people."""
    return f"{value:.0f} s" if value >= 100 else f"{value:.2g} s"


class Budget:
    """Seconds since it was made, and `gone` before that, against a limit."""

    def __init__(
        self, limit: float, clock: Clock = time.perf_counter, *, gone: float = 0.0
    ) -> None:
        self.limit, self.clock, self.started = limit, clock, clock() - gone

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


def chunks_of(batch: int, chunk: int) -> list[Part]:
    """(first, count) of the parts that a batch is run in: of one size, or of two."""
    sizes = equal_parts(batch, chunk)
    return list(zip(itertools.accumulate(sizes[:-1], initial=0), sizes, strict=True))


def run_trial(side: Side, seed: int, batch: int) -> tuple[Trial, Images]:
    """Time images 0..batch-1 of a seed, from the seed to uint8 on the host, always all of them.

    Raises LddganError if a latent holds NaN or Inf, OutOfMemory if a chunk does not fit: no smaller
    one is tried.
    """
    parts = chunks_of(batch, side.sampler.chunk)
    return (_fused_trial if side.sampler.backend.fused else _eager_trial)(side, seed, parts)


def _eager_trial(side: Side, seed: int, parts: list[Part]) -> tuple[Trial, Images]:
    """Marks after each stage of each chunk."""
    timer = side.timer
    marks, found = [timer.mark()], []
    for part in parts:
        after, made = _stages(side, seed, part)
        found.append(_downloaded(side.sampler, made))
        marks += [*after, timer.mark()]
    spans = _spans(timer, marks)
    noise, generator, decoder, download = (sum(spans[stage::4]) for stage in range(4))
    end_to_end = timer.milliseconds(marks[0], marks[-1])
    whole = generator + decoder
    images = _checked(side.sampler, found)
    return Trial(noise, generator, decoder, whole, download, end_to_end), images


def _fused_trial(side: Side, seed: int, parts: list[Part]) -> tuple[Trial, Images]:
    """The one launch of each chunk, and after it the same steps launched one by one."""
    timer = side.timer
    marks, found = [timer.mark()], []
    for part in parts:
        made = side.sampler.make(seed, *part)
        marks.append(timer.mark())
        found.append(_downloaded(side.sampler, made))
        marks.append(timer.mark())
    steps = [timer.mark()]
    for part in parts:
        steps += _stages(side, seed, part)[0]
    spans, apart = _spans(timer, marks), _spans(timer, steps)
    noise, generator, decoder = (sum(apart[stage::3]) for stage in range(3))
    whole, download = sum(spans[0::2]), sum(spans[1::2])
    end_to_end = timer.milliseconds(marks[0], marks[-1])
    images = _checked(side.sampler, found)
    return Trial(noise, generator, decoder, whole, download, end_to_end), images


def _stages(side: Side, seed: int, part: Part) -> tuple[list[Any], Made]:
    """Marks after noise, generator and decoder of one chunk, and what was made."""
    sampler, mark = side.sampler, side.timer.mark
    inputs = sampler.inputs(seed, *part)
    marks = [mark()]
    x_0 = sampler.denoise(inputs)
    marks.append(mark())
    image = sampler.decode(x_0)
    marks.append(mark())
    return marks, Made(x_0, image)


def _spans(timer: Timer, marks: Sequence[Any]) -> list[float]:
    return [timer.milliseconds(*pair) for pair in itertools.pairwise(marks)]


def _downloaded(sampler: Sampler, made: Made) -> Made:
    return Made(*map(sampler.backend.download, made))


def _checked(sampler: Sampler, parts: Sequence[Made]) -> Images:
    """All images, when the clock has stopped. Raises LddganError for NaN: its time says nothing."""
    x_0, images = map(np.concatenate, zip(*parts, strict=True))
    sampler.check(x_0, images)
    return images


def trial_seconds(side: Side, plan: Plan) -> float:
    """How long a trial will take: the better of two, since the first pays for what is made once.

    On a CPU they are of one image; on a GPU, whose engines may take no other, of the whole batch.
    """
    count = 1 if plan.device == "cpu" else plan.batch
    found = min(_seconds(side, run_trial(side, plan.seed, count)[0]) for _ in range(2))
    return found * plan.batch / count


def _seconds(side: Side, trial: Trial) -> float:
    """How long a trial took, the stages that a fused engine runs apart included."""
    apart = trial.noise + trial.generator + trial.decoder if side.sampler.backend.fused else 0.0
    return (trial.end_to_end + apart) / 1e3


def warm_up(side: Side, plan: Plan) -> None:
    """Run every stage for each chunk size that occurs."""
    for count in sorted(set(equal_parts(plan.batch, side.sampler.chunk))):
        for _ in range(WARM_UPS[plan.device]):
            run_trial(side, plan.seed, count)


def made_to_fit(run: Callable[[Side, Plan], T], side: Side, plan: Plan, log: Log) -> T:
    """`run(side, plan)`, again with half the images at once while there is too little memory.

    Raises OutOfMemory if the least that the engine takes does not fit.
    """
    sampler = side.sampler
    while True:
        try:
            return run(side, plan)
        except OutOfMemory as error:
            size = min(sampler.chunk, plan.batch)
            if size // 2 < sampler.backend.least:
                raise
            sampler.chunk = size // 2
            log(f"{error}; measured with {sampler.chunk} images at once instead of {size}")


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


class Measurement(NamedTuple):
    """What was found; the engine is side 0, the baseline side 1 if there is one."""

    opened: list[Opened]
    turns: Turns


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
