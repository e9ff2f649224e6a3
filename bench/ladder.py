"""The ladder: every way to run one model, on one machine, in one go, each beside the baseline."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from pydantic import ConfigDict, TypeAdapter

from bench.assemble import BUSY, agreement, common_notes, measured
from bench.cost import Cost, Traffic, measure_cost, measure_traffic
from bench.machine import Machine, commit, gpu, load, machine, torch_settings, versions
from bench.report import ABSENT, hardware, number
from bench.roofline import (
    Achieved,
    Ceilings,
    Device,
    Roof,
    comparable,
    intensities,
    measure_ceilings,
    summary,
)
from bench.row import LADDERS, RESULTS, Agreement, Measured, read_lines, save_lines
from bench.run import check_arguments
from bench.rungs import Rung, Workshop, rungs_of
from bench.timing import (
    Budget,
    Opened,
    Plan,
    Side,
    made_to_fit,
    seconds,
    take_turns,
    warm_up,
)
from engine.gpu.driver import why_no_gpu
from engine.timing import Clock
from export.bundle import Bundle
from lddgan.errors import BadInput, LddganError
from lddgan.extras import require
from lddgan.frozen import Frozen
from lddgan.names import DeviceName, Precision
from lddgan.preset import Preset
from lddgan.progress import Log

if TYPE_CHECKING:
    from rich.table import Table

MAX_SECONDS: Final = 30.0  # for the turns of one rung, unless asked otherwise
NEEDED: Final = ("torch", "safetensors", "onnx", "onnxscript", "onnxruntime")
WIDTH: Final = 124  # characters of the table, at least
COLUMNS: Final = (
    "rung",
    "ms",
    "seed to\npixels",
    "images/s",
    "times\nbaseline",
    "times\nbefore",
    "TFLOP/s",
    "of\nproduct",
    "of\nconv.",
    "GB/s at\nleast",
    "PSNR\ndB",
    "trials",
)


class Site(Frozen):
    """What the rungs of one ladder share."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    started: str  # UTC, ISO 8601; which ladder a row is of
    commit: str | None
    dataset: str
    random_weights: bool  # fit for timing only
    device: Device
    batch: int
    seed: int
    trials_asked: int
    max_seconds: float  # of each rung
    machine: Machine
    versions: dict[str, str]
    ceilings: Ceilings
    notes: tuple[str, ...]


class Found(Frozen):
    """What was measured of one rung, in turns with the baseline."""

    measured: Measured
    trials: int
    baseline_ms: float  # p50 of the baseline's whole in the same turns
    ratio: float  # baseline_ms / p50 of this rung's whole
    ratio_before: float | None  # ratio / that of the last rung that ran; None of the baseline
    agreement: Agreement | None  # with the baseline's images of the same noise
    intensity: tuple[float, float]  # FLOP per byte of generator and decoder (bench/roofline.py)


class LadderRow(Frozen):
    """One rung: a line of bench/results/ladder-<dataset>-<cpu or gpu>.jsonl."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    site: Site
    number: int  # from 1
    rung: str
    adds: str
    why_not: str | None  # why it did not run
    found: Found | None  # None if it did not


class Work(NamedTuple):
    """What the rungs of one ladder are measured by."""

    plan: Plan
    preset: Preset
    cost: Cost
    traffic: Traffic
    ceilings: Ceilings
    log: Log


def run_ladder(
    bundle: Bundle,
    device: DeviceName,
    *,
    batch: int,
    trials: int,
    seed: int,
    max_seconds: float | None = None,
    out: Path | None = None,
    log: Log = lambda _: None,
) -> list[LadderRow]:
    """Measure every rung of `bundle` on `device` and write each row to `out` when it is there.

    `auto` is the GPU if there is one.  `out` (None: `ladder_file`) keeps what it holds.
    `max_seconds` (None: MAX_SECONDS) cuts the trials of each rung, never the batch.
    Raises BadInput for arguments that cannot be used, LddganError if the baseline cannot run; any
    other rung that cannot is a row that says why.
    """
    check_arguments(batch, trials, seed, max_seconds)
    require(*NEEDED)
    where: Device = found_device(device)
    limit = MAX_SECONDS if max_seconds is None else max_seconds
    plan = Plan(where, batch, trials, seed, limit)
    path = ladder_file(bundle.preset.name, where) if out is None else out
    rows = read_ladders(path) if path.exists() else []
    site = survey_site(bundle, plan)
    log(summary(site.ceilings))
    preset = bundle.preset
    work = Work(plan, preset, measure_cost(preset), measure_traffic(preset), site.ceilings, log)
    made = []
    with tempfile.TemporaryDirectory(prefix="lddgan-ladder-") as folder:
        shop = Workshop(bundle, where, batch, Path(folder), log)
        for row in climb(site, rungs_of(shop), work):
            made.append(row)
            save_ladders([*rows, *made], path)
    return made


def found_device(asked: DeviceName) -> Device:
    """The device of a ladder. Raises LddganError for a GPU that is not there."""
    why_not = why_no_gpu() if asked != "cpu" else None
    if asked == "cuda" and why_not is not None:
        raise LddganError(why_not)
    return "cpu" if asked == "cpu" or why_not is not None else "cuda"


def survey_site(bundle: Bundle, plan: Plan) -> Site:
    """The machine, the code and the ceilings."""
    on_gpu, before, where_from = plan.device == "cuda", load(), commit()
    here = machine(before, gpu() if on_gpu else None)
    ceilings = measure_ceilings(bundle.preset, plan.device)
    busy = f"the machine was busy before: {before / here.cores:.1f} processes per core"
    said = {
        "random weights: timing only": bundle.has_random_weights,
        busy: before / here.cores > BUSY,
    }
    return Site(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=where_from,
        dataset=bundle.preset.name,
        random_weights=bundle.has_random_weights,
        device=plan.device,
        batch=plan.batch,
        seed=plan.seed,
        trials_asked=plan.trials,
        max_seconds=plan.max_seconds,
        machine=here,
        versions=versions(),
        ceilings=ceilings,
        notes=(
            *(sentence for sentence, holds in said.items() if holds),
            *common_notes(where_from, torch_settings() if on_gpu else None, ceilings),
        ),
    )


def climb(
    site: Site, rungs: Sequence[Rung], work: Work, clock: Clock = time.perf_counter
) -> Iterator[LadderRow]:
    """Measure the rungs in turns with the first, the baseline, which stays open.

    Raises LddganError if the baseline cannot run.
    """
    baseline = rungs[0].open()
    before: float | None = None
    for place, rung in enumerate(rungs, start=1):
        found, why_not = None, None
        work.log(f"{place} of {len(rungs)}: {rung.name}")
        try:
            side = baseline if place == 1 else rung.open()
            found = measure_rung(side, baseline, before, work, clock)
            del side  # its memory, before the next one is opened
        except LddganError as error:
            if place == 1:
                raise
            why_not = str(error)
        release(site.device)
        before = before if found is None else found.ratio
        row = LadderRow(
            site=site, number=place, rung=rung.name, adds=rung.adds, why_not=why_not, found=found
        )
        work.log(sentence(row))
        yield row


def measure_rung(
    side: Side, baseline: Side, before: float | None, work: Work, clock: Clock
) -> Found:
    """Warm a rung up, then time it in turns with the baseline. `before`: the ratio it is held to.

    Raises LddganError for NaN and OutOfMemory.
    """
    plan, alone = work.plan, side is baseline
    made_to_fit(warm_up, side, plan, work.log)
    sides = [side] if alone else [side, baseline]
    budget = Budget(plan.max_seconds, clock)
    turns = take_turns(sides, plan.seed, plan.batch, plan.trials, budget, lambda _done, _all: None)
    roof = Roof(work.preset, work.cost, work.ceilings)
    mine, its = (
        measured(Opened(one, None, None), trials, plan.batch, roof)
        for one, trials in ((side, turns.trials[0]), (baseline, turns.trials[-1]))
    )
    ratio = its.times.whole.p50 / mine.times.whole.p50
    return Found(
        measured=mine,
        trials=len(turns.trials[0]),
        baseline_ms=its.times.whole.p50,
        ratio=ratio,
        ratio_before=None if before is None else ratio / before,
        agreement=None if alone else agreement(*turns.images),
        intensity=intensities(
            work.cost, work.traffic, mine.precision, plan.batch, side.sampler.chunk
        ),
    )


def release(device: Device) -> None:
    """Give back the memory of a rung that is closed: its modules hold cycles."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()


def sentence(row: LadderRow) -> str:
    """One rung for the log."""
    if row.found is None:
        return f"{row.rung}: did not run: {row.why_not}"
    found = row.found
    return (
        f"{row.rung}: {number(found.measured.times.whole.p50)} ms, {found.ratio:.2f} times as "
        f"fast as the baseline, {found.trials} trials"
    )


def ladder_file(dataset: str, device: Device) -> Path:
    """Where the ladders of a model are kept: bench/results/ladder-lsun-cpu.jsonl"""
    return RESULTS / f"{LADDERS}{dataset}-{'gpu' if device == 'cuda' else 'cpu'}.jsonl"


def save_ladders(rows: Sequence[LadderRow], path: Path) -> Path:
    """Write a file of rungs, whole or not at all."""
    return save_lines(rows, path)


def read_ladders(path: Path) -> list[LadderRow]:
    """All rungs of a file, in its order. Raises BadInput naming the line that is none."""
    return read_lines(path, TypeAdapter(LadderRow), "a rung of a ladder")


def newest_ladder(path: Path) -> list[LadderRow]:
    """The rungs of the last ladder of a file. Raises BadInput if there is none."""
    rows = read_ladders(path) if path.exists() else []
    if not rows:
        raise BadInput(f"{path} holds no ladder; `lddgan bench --ladder` writes it")
    started = max(row.site.started for row in rows)
    return [row for row in rows if row.site.started == started]


def print_ladder(rows: Sequence[LadderRow]) -> None:
    """Write a ladder's table, and what must be known of it, to standard output."""
    from rich.console import Console

    console = Console()
    console.width = max(console.width, WIDTH)  # in a file or a pipe too
    site = rows[0].site
    console.print(table(rows))
    console.print(summary(site.ceilings), highlight=False)
    for row in rows:
        if row.found is None:
            console.print(sentence(row), markup=False, highlight=False)
    for note in site.notes:
        console.print(f"! {note}", style="bold red", markup=False)


def table(rows: Sequence[LadderRow]) -> Table:
    """A ladder for people."""
    from rich import box
    from rich.table import Table

    made = Table(
        title=heading(rows[0].site), title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    for column in COLUMNS:
        made.add_column(column, justify="left" if column == COLUMNS[0] else "right", no_wrap=True)
    for row in rows:
        made.add_row(*cells(row))
    return made


def heading(site: Site) -> str:
    """Model, batch and hardware."""
    return (
        f"{site.dataset}, batch {site.batch}, {hardware(site.machine)}; medians, each rung in "
        f"turns with the baseline for at most {seconds(site.max_seconds)}"
    )


def cells(row: LadderRow) -> list[str]:
    """One rung's text, in the order of COLUMNS."""
    found = row.found
    if found is None:
        return [row.rung, "did not run", *[ABSENT] * (len(COLUMNS) - 2)]
    times, reached = found.measured.times, found.measured.achieved
    rates = [ABSENT] * 4
    if reached is not None:
        rates = [
            number(reached.whole_tflops),
            *shares(row.site.ceilings, found.measured.precision, reached),
            number(reached.gb_per_second),
        ]
    return [
        row.rung,
        number(times.whole.p50),
        number(times.end_to_end.p50),
        number(found.measured.images_per_second),
        f"{found.ratio:.2f}",
        ABSENT if found.ratio_before is None else f"{found.ratio_before:.2f}",
        *rates,
        likeness(found.agreement),
        str(found.trials),
    ]


def shares(ceilings: Ceilings, precision: Precision, reached: Achieved) -> list[str]:
    """What is reached of the matrix product's rate and the convolution's, in one precision."""
    return [
        ABSENT
        if ceiling is None or not comparable(ceilings, precision)
        else f"{reached.whole_tflops / ceiling:.0%}"
        for ceiling in (ceilings.matmul_tflops, ceilings.convolution_tflops)
    ]


def likeness(found: Agreement | None) -> str:
    """PSNR of a rung's images."""
    if found is None:
        return ABSENT
    return "equal" if found.psnr is None else f"{found.psnr:.1f}"
