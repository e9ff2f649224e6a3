"""The benchmark: an engine and the PyTorch baseline, in turns, in one run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, NamedTuple, cast

from bench.machine import commit, load_average, machine, peak_memory_mib, versions
from bench.row import Agreement, BenchRow, Measured, StageTimes
from bench.timing import (
    WARM_UPS,
    Budget,
    Clock,
    Progress,
    Side,
    Trial,
    Turns,
    one_image,
    summarise,
    take_turns,
    timer_of,
    warm_up,
)
from engine.sampler import Images, check_request
from engine.select import (
    BASELINE_PRECISION,
    DeviceName,
    EngineName,
    choose,
    open_engine,
    survey,
)
from export.bundle import Bundle, open_bundle
from export.compare import changed, grey_levels, psnr
from export.graphs import Precision
from lddgan.errors import BadInput

MAX_SECONDS = {"cpu": 120.0, "cuda": float("inf")}  # unless asked otherwise
BASELINE: EngineName = "torch"
BUSY = 0.5  # load per core above which the machine was doing something else

Log = Callable[[str], None]


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


class Measurement(NamedTuple):
    """What `measure` found; the engine is side 0, the baseline side 1 if there is one."""

    opened: list[Opened]
    turns: Turns


def benchmark(
    bundle: str | os.PathLike[str] | Bundle,
    engine: EngineName,
    precision: Precision,
    device: DeviceName,
    *,
    batch: int,
    trials: int,
    seed: int,
    max_seconds: float | None = None,
    chunk: int | None = None,
    log: Log = lambda _: None,
    progress: Progress = lambda _done, _asked: None,
) -> BenchRow:
    """Measure an engine beside the PyTorch baseline on the same bundle and device.

    `max_seconds` (None: MAX_SECONDS of the device) limits the run from its first image, loading
    the baseline and warm-up included; it cuts trials, never the batch, and one trial is always
    run.  `chunk` is for both sides; None leaves it to each.  `log` hears the estimate first.
    Raises BadInput for arguments that cannot be used, LddganError for an engine that cannot run
    or that makes NaN.
    """
    check_arguments(batch, trials, seed, max_seconds)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    chosen = choose(engine, device, precision)
    where = cast(Literal["cpu", "cuda"], chosen.device)
    limit = MAX_SECONDS[where] if max_seconds is None else max_seconds
    why_not = why_no_baseline(where)
    load = load_average()

    def opener(name: str, dtype: Precision) -> Callable[[], Side]:
        def open_side() -> Side:
            sampler = open_engine(opened, cast(EngineName, name), dtype, where, chunk)
            return Side(sampler, timer_of(sampler, where))

        return open_side

    plan = Plan(where, batch, trials, seed, limit)
    found = measure(
        opener(chosen.engine, precision),
        opener(BASELINE, BASELINE_PRECISION) if why_not is None else None,
        plan,
        log,
        progress,
    )
    return make_row(opened, precision, plan, found, why_not, load)


def check_arguments(batch: int, trials: int, seed: int, max_seconds: float | None) -> None:
    """Raise BadInput unless the run is possible."""
    check_request(1, seed, 0, batch)
    if trials < 1:
        raise BadInput(f"trials is {trials}, and must be at least 1")
    if max_seconds is not None and not max_seconds >= 0:
        raise BadInput(f"max-seconds is {max_seconds}, and must be 0 or more")


def why_no_baseline(device: str) -> str | None:
    """Why the PyTorch baseline cannot run on `device`."""
    candidates = [one for one in survey() if (one.engine, one.device) == (BASELINE, device)]
    return candidates[0].why_not


def measure(
    open_side: Callable[[], Side],
    open_baseline: Callable[[], Side] | None,
    plan: Plan,
    log: Log,
    progress: Progress,
    clock: Clock = time.perf_counter,
) -> Measurement:
    """Open, estimate, warm up, then take turns. The engine is warm before the baseline is loaded,
    so that its peak memory is its own."""
    engine = open_side()
    budget = Budget(plan.max_seconds, clock)
    limited = budget.limit != float("inf")
    turn = plan.batch * one_image(engine, plan.seed) if limited else 0.0
    if limited and open_baseline is not None:
        log(f"{engine.sampler.description}: about {seconds(turn)} per trial, from one image")
    elif limited:
        log(estimate(plan, turn, budget))
    opened = [warmed(engine, plan)]
    if open_baseline is not None:
        baseline = open_baseline()
        if limited:
            turn += plan.batch * one_image(baseline, plan.seed)
            log(f"with the PyTorch baseline: {estimate(plan, turn, budget)}")
        opened.append(warmed(baseline, plan))
    sides = [one.side for one in opened]
    turns = take_turns(sides, plan.seed, plan.batch, plan.trials, budget, progress)
    return Measurement(opened, turns)


def warmed(side: Side, plan: Plan) -> Opened:
    """The side after its warm-up, and the peak memory by then."""
    warm_up(side, plan.seed, plan.batch, WARM_UPS[plan.device])
    return Opened(side, peak_memory_mib())


def estimate(plan: Plan, turn: float, budget: Budget) -> str:
    """The sentence that is printed before the long part."""
    fit = budget.turns(turn, plan.trials)
    limit = f"what is left of {seconds(budget.limit)}"
    how_many = f"{fit} of {plan.trials} fit in {limit}"
    if fit == 0:
        how_many = f"not one fits in {limit}, so one is run all the same"
    return f"about {seconds(turn)} per trial of {plan.batch} images, {how_many}"


def seconds(value: float) -> str:
    """A duration for people."""
    return f"{value:.0f} s" if value >= 100 else f"{value:.2g} s"


def make_row(
    bundle: Bundle,
    precision: Precision,
    plan: Plan,
    found: Measurement,
    why_no_torch: str | None,
    load: float,
) -> BenchRow:
    """Everything that is known of one run."""
    sides = [
        measured(one, trials, plan.batch)
        for one, trials in zip(found.opened, found.turns.trials, strict=True)
    ]
    baseline = sides[1] if len(sides) > 1 else None
    here, paper = machine(plan.device, load), bundle.preset.paper
    done = len(found.turns.trials[0])
    verified = bundle.manifest.verification.get(precision)  # the torch engine needs no graph
    return BenchRow(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        dataset=bundle.preset.name,
        preset=bundle.preset.model_dump(),
        random_weights=bundle.has_random_weights,
        device=plan.device,
        batch=plan.batch,
        seed=plan.seed,
        trials_asked=plan.trials,
        trials=done,
        nfe=bundle.preset.steps,
        engine=sides[0],
        baseline=baseline,
        ratio=baseline.times.whole.p50 / sides[0].times.whole.p50 if baseline else None,
        agreement=agreement(*found.turns.images) if baseline else None,
        verification=verified.model_dump() if verified else {},
        paper_seconds=paper.seconds if paper else None,
        paper_source=paper.source if paper else None,
        machine=here,
        versions=versions(),
        notes=notes(bundle, plan, done, why_no_torch, here.load / here.cores),
    )


def measured(opened: Opened, trials: list[Trial], batch: int) -> Measured:
    """One side's part of the row."""
    sampler = opened.side.sampler
    times = StageTimes.model_validate(
        {stage: summarise([getattr(trial, stage) for trial in trials]) for stage in Trial._fields}
    )
    return Measured(
        engine=sampler.backend.name,
        precision=cast(Precision, sampler.backend.precision),
        where=sampler.backend.where,
        chunk=sampler.chunk,
        times=times,
        images_per_second=batch / (times.whole.p50 / 1e3),
        peak_memory_mib=opened.peak_memory_mib,
    )


def agreement(images: Images, true: Images) -> Agreement:
    """Compare uint8 [N,H,W,3] of the engine and of the baseline."""
    equal = bool((images == true).all())
    return Agreement(
        grey_levels=grey_levels(images, true),
        changed=changed(images, true),
        psnr=None if equal else psnr(images, true),
    )


def notes(
    bundle: Bundle, plan: Plan, done: int, why_no_torch: str | None, load_per_core: float
) -> tuple[str, ...]:
    """Sentences that belong to the numbers."""
    said = {
        f"{done} of {plan.trials} trials: more do not fit in {seconds(plan.max_seconds)} "
        "(--max-seconds)": done < plan.trials,
        f"no PyTorch baseline: {why_no_torch}": why_no_torch is not None,
        "random weights: timing only": bundle.has_random_weights,
        f"the machine was busy before the run: {load_per_core:.1f} processes per core": (
            load_per_core > BUSY
        ),
    }
    return tuple(sentence for sentence, holds in said.items() if holds)
