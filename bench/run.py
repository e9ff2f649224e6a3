"""The benchmark: an engine and the PyTorch baseline, in turns, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from bench.cost import Cost, known_cost
from bench.machine import (
    Gpu,
    Machine,
    gpu,
    gpu_memory_mib,
    machine,
    peak_memory_mib,
    torch_settings,
)
from bench.roofline import Ceilings, measure_ceilings, work_of
from bench.row import Kind, Row, new_row, now
from bench.timing import (
    Budget,
    Plan,
    Progress,
    Side,
    Trial,
    run_trial,
    seconds,
    summarise,
    take_turns,
    warm_up,
)
from engine.registry import BASELINE, BASELINE_PRECISION, choose, open_engine, survey
from engine.sampler import Sampler, check_request
from engine.timing import Clock, HostTimer, median_ms
from engine.verification import Verification
from engine.verify import verify_opened
from export.agreement import Differences, changed, grey_levels, psnr
from export.bundle import Bundle
from lddgan.errors import LddganError
from lddgan.extras import require
from lddgan.names import Device, DeviceName, Precision
from lddgan.pictures import png
from lddgan.progress import Log

MAX_SECONDS: Final = {"cpu": 120.0, "cuda": float("inf")}  # unless asked otherwise
POWER_SECONDS: Final = 1.0  # over which drivers average the power that they report
LEAST_VERIFIED: Final = 4  # images
ONE_LAUNCH: Final = (
    "the whole is one CUDA graph launch and includes drawing the noise, as the paper's loop does; "
    "the stages are of the same steps launched one by one"
)

Exported = Mapping[Precision, Differences]  # what the export of a bundle's graphs measured
Opener = Callable[[], Sampler]


def benchmark(
    bundle: Bundle,
    engine: str,
    precision: Precision | None,
    device: DeviceName,
    *,
    batch: int,
    trials: int,
    seed: int,
    max_seconds: float | None = None,
    cuda_graph: bool = True,
    verify: bool = False,
    log: Log = lambda _: None,
    progress: Progress = lambda _done, _asked: None,
) -> list[Row]:
    """Measure an engine beside the PyTorch baseline. Returns the row of each, the engine's first.

    `max_seconds` (None: MAX_SECONDS of the device) limits the run from its first image, including
    the loading of the baseline and the warm-up; it cuts trials, never the batch, and one trial is
    always run. `verify`: afterwards compare the engine with PyTorch fp32 on as many images, even if
    it failed before. Other arguments are those of `open_engine`.
    Raises BadInput for unusable arguments, LddganError if the engine cannot run or makes NaN.
    """
    check_request(1, seed, 0, batch)
    if verify:
        require("torch", "safetensors")
    chosen = choose(engine, device, precision, bundle.precisions, bundle.preset)
    limit = MAX_SECONDS[chosen.device] if max_seconds is None else max_seconds
    plan = Plan(chosen.device, batch, trials, seed, limit)

    options: dict[str, Any] = {"batch": batch, "accept_failed": verify, "log": log}
    opener = partial(open_engine, bundle, device=chosen.device, **options)
    openers = [partial(opener, chosen.engine, chosen.precision, cuda_graph=cuda_graph)]
    notes: list[str] = []
    why_not = why_no_baseline(chosen.device)
    if why_not is None:
        openers.append(partial(opener, BASELINE, BASELINE_PRECISION))
    else:
        notes.append(f"no PyTorch baseline: {why_not}")
    sides, here = measure(openers, plan, log, progress)
    extras: dict[str, Any] = {}
    if max_seconds is not None and len(sides[0].trials) < trials:
        notes.append("ceilings and PNG files were left out: the trials took all of --max-seconds")
    else:
        images = sides[0].images
        extras["png_ms"] = median_ms(HostTimer(), lambda: [*map(png, images)], runs=1, warm_ups=0)
        if plan.device == "cuda":
            extras["ceilings"] = measure_ceilings(bundle.preset, "cuda")
    rows = make_rows(sides, here, plan, notes, exported=bundle.manifest.verification, **extras)
    if verify:
        rows[0] = verified(rows[0], sides[0].sampler, bundle, log)
    return rows


def verified(row: Row, sampler: Sampler, bundle: Bundle, log: Log) -> Row:
    """The row with what verification measured, or a note that says why it could not."""
    images = max(row.batch, LEAST_VERIFIED)
    try:
        found = verify_opened(sampler, bundle, images=images, at_once=row.batch, log=log)
    except LddganError as error:  # the measured times are kept
        log(f"not verified: {error}")
        return row.model_copy(update={"notes": (*row.notes, f"not verified: {error}")})
    return with_verification(row, found)


def with_verification(row: Row, found: Verification) -> Row:
    """A row with what verification measured of its engine, and a note if it failed."""
    failed = () if found.why_failed is None else (f"verify: {found.why_failed}",)
    changes = {"verification": found.model_dump(mode="json"), "notes": (*row.notes, *failed)}
    return row.model_copy(update=changes)


def gpu_at_work(sampler: Sampler, plan: Plan) -> Gpu:
    """The GPU's state during runs that do not count, of POWER_SECONDS at least."""

    def ask() -> Gpu:
        time.sleep(POWER_SECONDS)
        return gpu()

    with ThreadPoolExecutor(max_workers=1) as pool:
        asked = pool.submit(ask)
        while not asked.done():
            run_trial(sampler, plan.seed, plan.batch)
    return asked.result()


def usable_device(asked: DeviceName) -> Device:
    """`auto` is the GPU if the baseline can use it. Raises LddganError if `cuda` cannot be used."""
    why_not = None if asked == "cpu" else why_no_baseline("cuda")
    if asked == "cuda" and why_not is not None:
        raise LddganError(why_not)
    return "cpu" if asked == "cpu" or why_not is not None else "cuda"


def why_no_baseline(device: Device) -> str | None:
    """Why the PyTorch baseline cannot run on a device. Returns None if it can."""
    return next(survey(BASELINE, device)).why_not


def measure(
    openers: Sequence[Opener],
    plan: Plan,
    log: Log,
    progress: Progress = lambda _done, _asked: None,
    clock: Clock = time.perf_counter,
) -> tuple[list[Side], Machine]:
    """Open and warm up each, then take turns. Also returns the machine, its GPU at work.

    The engine, which is the first, is warm before the baseline is loaded, so that its peak memory
    is its own.
    """
    here, turn = machine(), 0.0
    engine = openers[0]()
    budget = Budget(plan.max_seconds, clock)
    samplers, memory = [], []
    for place, open_it in enumerate(openers):
        samplers.append(open_it() if place else engine)
        turn += warm_up(samplers[-1], plan, log, clock)
        memory.append((peak_memory_mib(), gpu_memory_mib(plan.device)))
    log(estimate(plan, turn, budget))
    if plan.device == "cuda":
        here = here.model_copy(update={"gpu": gpu_at_work(engine, plan)})
    sides = take_turns(samplers, plan, budget, progress)
    return [
        side._replace(peak_memory_mib=own, gpu_memory_mib=all_of_gpu)
        for side, (own, all_of_gpu) in zip(sides, memory, strict=True)
    ], here


def estimate(plan: Plan, turn: float, budget: Budget) -> str:
    """The sentence that is printed before the long part; `turn` is the seconds of a trial."""
    fit = max(1, int(min(plan.trials, budget.left / max(turn, 1e-9))))
    cut = f" of {plan.trials}, in what is left of {seconds(plan.max_seconds)}"
    many = f"{fit}{cut if fit < plan.trials else ''}"
    return f"about {seconds(turn)} per trial of {plan.batch} images; trials: {many}"


def make_rows(
    sides: Sequence[Side],
    here: Machine,
    plan: Plan,
    notes: Sequence[str] = (),
    *,
    exported: Exported | None = None,
    ceilings: Ceilings | None = None,
    png_ms: float | None = None,
) -> list[Row]:
    """The rows of one run: the engine's, then the baseline's if there is one."""
    cost = known_cost(sides[0].sampler.preset)
    fields = [side_fields(side, plan, cost, exported or {}) for side in sides]
    fields[0] |= {"png_ms": png_ms}
    if len(sides) > 1:
        fields[0] |= beside(sides[0], sides[1])
    return session_rows("engine", sides, fields, here, plan, notes, ceilings=ceilings)


def session_rows(
    kind: Kind,
    sides: Sequence[Side],
    fields: Sequence[dict[str, Any]],
    here: Machine,
    plan: Plan,
    notes: Sequence[str] = (),
    **shared: Any,
) -> list[Row]:
    """The rows of one run: a side's own fields, and those that all share."""
    done, session = len(sides[0].trials), now()
    limit = f"{done} of {plan.trials} trials: more do not fit in {seconds(plan.max_seconds)}"
    said = [limit, *notes] if done < plan.trials else notes
    shared |= {
        "machine": here,
        "torch_settings": torch_settings(plan.device),
        "max_seconds": None if plan.max_seconds == float("inf") else plan.max_seconds,
    }
    rows = []
    for side, own in zip(sides, fields, strict=True):
        launched = (ONE_LAUNCH,) if side.sampler.backend.captures else ()
        own = own | {"preset": side.sampler.preset.model_dump()}
        rows.append(new_row(kind, session, (*said, *launched), **shared, **own))
    return rows


def side_fields(side: Side, plan: Plan, cost: Cost | None, exported: Exported) -> dict[str, Any]:
    """The fields of a row that are about one side."""
    sampler = side.sampler
    backend, preset, facts = sampler.backend, sampler.preset, dict(sampler.backend.facts())
    precision = backend.precision
    verification, known = facts.pop("verification", None), exported.get(precision)
    if verification is None and known and (backend.name, plan.device) == ("ort", "cpu"):
        verification = known.model_dump(mode="json")  # the export measures this engine only
    times = zip(*side.trials, strict=True)
    return {
        "dataset": preset.name,
        "random_weights": sampler.random_weights,
        "device": plan.device,
        "batch": plan.batch,
        "seed": plan.seed,
        "trials_asked": plan.trials,
        "trials": len(side.trials),
        "engine": backend.name,
        "precision": precision,
        "where": backend.where,
        "chunk": sampler.chunk,
        "cuda_graph": backend.captures if backend.device == "cuda" else None,
        "ms": {stage: summarise(ms) for stage, ms in zip(Trial._fields, times, strict=True)},
        "peak_memory_mib": side.peak_memory_mib,
        "gpu_memory_mib": side.gpu_memory_mib,
        "facts": facts,
        "verification": verification,
        **work_of(cost, preset, precision, plan.batch, sampler.chunk),
    }


def beside(side: Side, baseline: Side) -> dict[str, Any]:
    """How a side compares with the baseline of the same turns, as fields of its row."""
    return {
        "baseline_ms": summarise([trial.whole for trial in baseline.trials]).p50,
        "grey_levels": grey_levels(side.images, baseline.images),
        "changed": changed(side.images, baseline.images),
        "psnr": psnr(side.images, baseline.images),
    }
