"""The benchmark: an engine and the PyTorch baseline, in turns, in one run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from bench.assemble import LEFT_OUT, Extras, Subject, make_row, measure_extras, with_verification
from bench.machine import Gpu, Machine, gpu, gpu_memory_mib, load, machine, peak_memory_mib
from bench.row import BenchRow
from bench.timing import (
    Budget,
    Measurement,
    Opened,
    Plan,
    Progress,
    Side,
    made_to_fit,
    run_trial,
    seconds,
    take_turns,
    trial_seconds,
    warm_up,
)
from engine.registry import (
    BASELINE_PRECISION,
    choose,
    open_engine,
    survey,
)
from engine.sampler import check_request
from engine.timing import Clock
from engine.verify import verify_opened
from export.bundle import Bundle, open_bundle
from lddgan.errors import BadInput, LddganError
from lddgan.extras import require
from lddgan.names import DeviceName, Precision
from lddgan.progress import Log

MAX_SECONDS = {"cpu": 120.0, "cuda": float("inf")}  # unless asked otherwise
BASELINE: str = "torch"
POWER_SECONDS: Final = 1.0  # over which drivers average the power that they tell
LEAST_VERIFIED: Final = 4  # images


def benchmark(
    bundle: str | os.PathLike[str] | Bundle,
    engine: str,
    precision: Precision | None,
    device: DeviceName,
    *,
    batch: int,
    trials: int,
    seed: int,
    max_seconds: float | None = None,
    chunk: int | None = None,
    cuda_graph: bool = True,
    verify: bool = False,
    log: Log = lambda _: None,
    progress: Progress = lambda _done, _asked: None,
) -> BenchRow:
    """Measure an engine beside the PyTorch baseline on the same bundle and device.

    `max_seconds` (None: MAX_SECONDS of the device) limits the run from its first image, loading
    the baseline and warm-up included; it cuts trials, never the batch, and one trial is always
    run.  `chunk` is for both sides; None leaves it to each.  `cuda_graph` False: TensorRT launches
    its steps one by one.  `verify`: afterwards compare the engine with PyTorch fp32 on as many
    images, also one that failed before.  `log` hears the estimate first.
    Raises BadInput for arguments that cannot be used, LddganError for an engine that cannot run
    or that makes NaN.
    """
    check_arguments(batch, trials, seed, max_seconds)
    if verify:
        require("torch", "safetensors")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    chosen = choose(engine, device, precision, opened.precisions, opened.preset)
    limit = MAX_SECONDS[chosen.device] if max_seconds is None else max_seconds
    why_not = why_no_baseline(chosen.device)

    def opener(name: str, dtype: Precision, graph: bool) -> Callable[[], Side]:
        def open_side() -> Side:
            sampler = open_engine(
                opened,
                name,
                dtype,
                chosen.device,
                chunk,
                batch=batch,
                cuda_graph=graph,
                accept_failed=verify,
                log=log,
            )
            return Side(sampler, sampler.backend.timer())

        return open_side

    plan = Plan(chosen.device, batch, trials, seed, limit)
    found, here = measure_here(
        opener(chosen.engine, chosen.precision, cuda_graph),
        opener(BASELINE, BASELINE_PRECISION, True) if why_not is None else None,
        plan,
        log,
        progress,
    )
    in_a_hurry = max_seconds is not None and len(found.turns.trials[0]) < trials
    extras = (
        Extras(note=LEFT_OUT)
        if in_a_hurry
        else measure_extras(plan, opened.preset, found.turns.images[0])
    )
    row = make_row(Subject.of(opened), plan, found, why_not, here, extras)
    if not verify:
        return row
    sampler, images = found.opened[0].side.sampler, max(batch, LEAST_VERIFIED)
    try:
        checked = verify_opened(sampler, opened, images=images, at_once=batch, log=log)
    except LddganError as error:  # what was measured is not lost by it
        log(f"not verified: {error}")
        return row.model_copy(update={"notes": (*row.notes, f"not verified: {error}")})
    return with_verification(row, checked)


def measure_here(
    open_side: Callable[[], Side],
    open_baseline: Callable[[], Side] | None,
    plan: Plan,
    log: Log,
    progress: Progress,
) -> tuple[Measurement, Machine]:
    """`measure`, and the machine: its load before, its GPU at work."""
    before = load()
    states: list[Gpu] = []

    def watch(side: Side) -> None:
        if plan.device == "cuda":
            states.append(gpu_at_work(side, plan))

    found = measure(open_side, open_baseline, plan, log, progress, watch=watch)
    return found, machine(before, states[-1] if states else None)


def gpu_at_work(side: Side, plan: Plan) -> Gpu:
    """The GPU's state during runs of a side that do not count, of POWER_SECONDS at least."""

    def ask() -> Gpu:
        time.sleep(POWER_SECONDS)
        return gpu()

    with ThreadPoolExecutor(max_workers=1) as pool:
        asked = pool.submit(ask)
        while not asked.done():
            run_trial(side, plan.seed, plan.batch)
    return asked.result()


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
    watch: Callable[[Side], None] = lambda _side: None,
) -> Measurement:
    """Open, estimate, warm up, then take turns. The engine is warm before the baseline is loaded,
    so that its peak memory is its own; `watch` gets it before the first turn."""
    engine = open_side()
    budget = Budget(plan.max_seconds, clock)
    limited = budget.limit != float("inf")
    turn = made_to_fit(trial_seconds, engine, plan, log) if limited else 0.0
    if limited and open_baseline is not None:
        log(f"{engine.sampler.description}: about {seconds(turn)} per trial")
    elif limited:
        log(estimate(plan, turn, budget))
    opened = [warmed(engine, plan, log)]
    if open_baseline is not None:
        baseline = open_baseline()
        if limited:
            turn += made_to_fit(trial_seconds, baseline, plan, log)
            log(f"with the PyTorch baseline: {estimate(plan, turn, budget)}")
        opened.append(warmed(baseline, plan, log))
    sides = [one.side for one in opened]
    watch(engine)
    turns = take_turns(sides, plan.seed, plan.batch, plan.trials, budget, progress)
    return Measurement(opened, turns)


def warmed(side: Side, plan: Plan, log: Log) -> Opened:
    """The side after its warm-up, and the memory in use by then."""
    made_to_fit(warm_up, side, plan, log)
    return Opened(side, peak_memory_mib(), gpu_memory_mib(plan.device))


def estimate(plan: Plan, turn: float, budget: Budget) -> str:
    """The sentence that is printed before the long part."""
    fit = budget.turns(turn, plan.trials)
    limit = f"what is left of {seconds(budget.limit)}"
    how_many = f"{fit} of {plan.trials} fit in {limit}"
    if fit == 0:
        how_many = f"not one fits in {limit}, so one is run all the same"
    return f"about {seconds(turn)} per trial of {plan.batch} images, {how_many}"
