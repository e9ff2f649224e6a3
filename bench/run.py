"""The benchmark: an engine and the PyTorch baseline, in turns, in one run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple

from bench.cost import Cost, known_cost
from bench.machine import (
    Gpu,
    Machine,
    gpu,
    gpu_memory_mib,
    load,
    machine,
    peak_memory_mib,
    torch_settings,
)
from bench.roofline import Ceilings, Device, measure_ceilings, work_of
from bench.row import Row, new_row, now
from bench.timing import (
    Budget,
    Measurement,
    Opened,
    Plan,
    Progress,
    Side,
    Trial,
    made_to_fit,
    run_trial,
    seconds,
    summarise,
    take_turns,
    trial_seconds,
    warm_up,
)
from engine.backend import Images
from engine.registry import BASELINE, BASELINE_PRECISION, choose, open_engine, survey
from engine.sampler import check_request
from engine.timing import Clock
from engine.verification import Verification
from engine.verify import verify_opened
from export.agreement import Differences, changed, grey_levels, psnr
from export.bundle import Bundle, open_bundle
from lddgan.errors import BadInput, LddganError
from lddgan.extras import require
from lddgan.names import DeviceName, Precision
from lddgan.pictures import png
from lddgan.preset import Preset
from lddgan.progress import Log

MAX_SECONDS: Final = {"cpu": 120.0, "cuda": float("inf")}  # unless asked otherwise
POWER_SECONDS: Final = 1.0  # over which drivers average the power that they report
LEAST_VERIFIED: Final = 4  # images
LEFT_OUT: Final = "ceilings and PNG files were left out: the trials took all of --max-seconds"
ONE_LAUNCH: Final = (
    "the whole is one CUDA graph launch and includes drawing the noise, as the paper's loop does; "
    "the stages are of the same steps launched one by one"
)


class Subject(NamedTuple):
    """The model that is measured."""

    preset: Preset
    random_weights: bool
    exported: Mapping[Precision, Differences] = {}  # what the export of its graphs measured

    @classmethod
    def of(cls, bundle: Bundle) -> Subject:
        return cls(bundle.preset, bundle.has_random_weights, bundle.manifest.verification)


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
) -> list[Row]:
    """Measure an engine beside the PyTorch baseline. Returns the row of each, the engine's first.

    `max_seconds` (None: MAX_SECONDS of the device) limits the run from its first image, including
    the loading of the baseline and the warm-up; it cuts trials, never the batch, and one trial is
    always run. `chunk` is for both sides; None leaves it to each. `cuda_graph` False: the steps are
    launched one by one. `verify`: afterwards compare the engine with PyTorch fp32 on as many
    images, even if it failed before. `log` gets the estimate first.
    Raises BadInput for unusable arguments, LddganError if the engine cannot run or makes NaN.
    """
    check_arguments(batch, trials, seed, max_seconds)
    if verify:
        require("torch", "safetensors")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    chosen = choose(engine, device, precision, opened.precisions, opened.preset)
    limit = MAX_SECONDS[chosen.device] if max_seconds is None else max_seconds
    plan = Plan(chosen.device, batch, trials, seed, limit)
    options: dict[str, Any] = {"batch": batch, "accept_failed": verify, "log": log}

    def open_side(name: str, precision: Precision, cuda_graph: bool) -> Side:
        more = options | {"cuda_graph": cuda_graph}
        return Side.of(open_engine(opened, name, precision, chosen.device, chunk, **more))

    why_not = why_no_baseline(chosen.device)
    open_it = partial(open_side, chosen.engine, chosen.precision, cuda_graph)
    open_baseline = partial(open_side, BASELINE, BASELINE_PRECISION, True)
    found, here = measure_here(
        open_it, None if why_not is not None else open_baseline, plan, log, progress
    )
    notes = [] if why_not is None else [f"no PyTorch baseline: {why_not}"]
    extras: dict[str, Any] = {}
    if max_seconds is not None and len(found.turns.trials[0]) < trials:
        notes.append(LEFT_OUT)
    else:
        on_gpu = plan.device == "cuda"
        extras["ceilings"] = measure_ceilings(opened.preset, "cuda") if on_gpu else None
        extras["png_ms"] = png_ms(found.turns.images[0])
    first, *baseline = make_rows(Subject.of(opened), plan, found, here, notes=notes, **extras)
    if verify:
        first = verified(first, found.opened[0].side, opened, log)
    return [first, *baseline]


def verified(row: Row, side: Side, bundle: Bundle, log: Log) -> Row:
    """The row with what verification measured, or a note that says why it could not."""
    images = max(row.batch, LEAST_VERIFIED)
    try:
        found = verify_opened(side.sampler, bundle, images=images, at_once=row.batch, log=log)
    except LddganError as error:  # the measured times are kept
        log(f"not verified: {error}")
        return row.model_copy(update={"notes": (*row.notes, f"not verified: {error}")})
    return with_verification(row, found)


def measure_here(
    open_side: Callable[[], Side],
    open_baseline: Callable[[], Side] | None,
    plan: Plan,
    log: Log,
    progress: Progress = lambda _done, _asked: None,
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


def usable_device(asked: DeviceName, why_no_gpu: str | None) -> Device:
    """`auto` is the GPU if it can be used. Raises LddganError if it was asked for and cannot."""
    if asked == "cuda" and why_no_gpu is not None:
        raise LddganError(why_no_gpu)
    return "cpu" if asked == "cpu" or why_no_gpu is not None else "cuda"


def why_no_baseline(device: str) -> str | None:
    """Why the PyTorch baseline cannot run on a device. Returns None if it can."""
    return next(one.why_not for one in survey() if (one.engine, one.device) == (BASELINE, device))


def measure(
    open_side: Callable[[], Side],
    open_baseline: Callable[[], Side] | None,
    plan: Plan,
    log: Log,
    progress: Progress,
    clock: Clock = time.perf_counter,
    watch: Callable[[Side], None] = lambda _side: None,
) -> Measurement:
    """Open, estimate, warm up, then take turns.

    The engine is warm before the baseline is loaded, so that its peak memory is its own. `watch`
    gets it before the first turn.
    """
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
    watch(engine)
    sides = [one.side for one in opened]
    turns = take_turns(sides, plan.seed, plan.batch, plan.trials, budget, progress)
    return Measurement(opened, turns)


def warmed(side: Side, plan: Plan, log: Log) -> Opened:
    """The side after its warm-up, with the memory in use by then."""
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


def make_rows(
    subject: Subject,
    plan: Plan,
    found: Measurement,
    here: Machine,
    *,
    notes: Sequence[str] = (),
    ceilings: Ceilings | None = None,
    png_ms: float | None = None,
) -> list[Row]:
    """The rows of one run: the engine's, then the baseline's if there is one."""
    cost, session = known_cost(subject.preset), now()
    done, images = len(found.turns.trials[0]), found.turns.images
    said = list(notes)
    if done < plan.trials:
        said.insert(
            0, f"{done} of {plan.trials} trials: more do not fit in {seconds(plan.max_seconds)}"
        )
    if found.opened[0].side.sampler.backend.captures:
        said.append(ONE_LAUNCH)
    sides = [
        side_fields(one, trials, plan, subject, cost)
        for one, trials in zip(found.opened, found.turns.trials, strict=True)
    ]
    sides[0] |= {"png_ms": png_ms}
    if len(sides) > 1:
        whole = sides[1]["ms"]["whole"].p50
        sides[0] |= {"baseline_ms": whole} | agreement(*images)
    common: dict[str, Any] = {
        "machine": here,
        "torch_settings": torch_settings() if plan.device == "cuda" else None,
        "preset": subject.preset.model_dump(),
        "max_seconds": None if plan.max_seconds == float("inf") else plan.max_seconds,
        "ceilings": ceilings,
    }
    return [new_row("engine", session, said, **common, **fields) for fields in sides]


def side_fields(
    opened: Opened, trials: Sequence[Trial], plan: Plan, subject: Subject, cost: Cost | None
) -> dict[str, Any]:
    """The fields of a row that are about one side."""
    sampler, preset = opened.side.sampler, subject.preset
    backend, facts = sampler.backend, dict(sampler.backend.facts())
    precision = backend.precision
    verification = facts.pop("verification", None)
    exported = subject.exported.get(precision)
    if verification is None and exported and (backend.name, plan.device) == ("ort", "cpu"):
        verification = exported.model_dump(mode="json")  # the export measures this engine only
    times = zip(*trials, strict=True)
    return {
        "dataset": preset.name,
        "random_weights": subject.random_weights,
        "device": plan.device,
        "batch": plan.batch,
        "seed": plan.seed,
        "trials_asked": plan.trials,
        "trials": len(trials),
        "engine": backend.name,
        "precision": precision,
        "where": backend.where,
        "chunk": sampler.chunk,
        "cuda_graph": backend.captures if backend.device == "cuda" else None,
        "ms": {stage: summarise(ms) for stage, ms in zip(Trial._fields, times, strict=True)},
        "peak_memory_mib": opened.peak_memory_mib,
        "gpu_memory_mib": opened.gpu_memory_mib,
        "facts": facts,
        "verification": verification,
        **work_of(cost, preset, precision, plan.batch, sampler.chunk),
    }


def with_verification(row: Row, found: Verification) -> Row:
    """A row with what verification measured of its engine, and a note if it failed."""
    failed = () if found.why_failed is None else (f"verify: {found.why_failed}",)
    changes = {"verification": found.model_dump(mode="json"), "notes": (*row.notes, *failed)}
    return row.model_copy(update=changes)


def agreement(images: Images, true: Images) -> dict[str, Any]:
    """How far uint8 images [N,H,W,3] are from the baseline's, as fields of a row."""
    return {
        "grey_levels": grey_levels(images, true),
        "changed": changed(images, true),
        "psnr": psnr(images, true),
    }


def png_ms(images: Images, clock: Clock = time.perf_counter) -> float:
    """Milliseconds to encode uint8 [N,H,W,3] as PNGs, one after the other."""
    started = clock()
    for image in images:
        png(image)
    return (clock() - started) * 1e3
