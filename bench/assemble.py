"""From what was measured to the row that says everything about it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, cast

from bench.cost import measure_cost
from bench.machine import NO_COMMIT, Machine, commit, in_words, torch_settings, versions
from bench.roofline import Ceilings, Roof, StageMilliseconds, achieved, measure_ceilings
from bench.row import Agreement, BenchRow, Measured, StageTimes
from bench.timing import Measurement, Opened, Plan, Trial, seconds, summarise
from engine.backend import Images
from engine.timing import Clock
from engine.verification import Verification
from export.agreement import Differences
from export.bundle import Bundle
from export.compare import changed, grey_levels, psnr
from lddgan.extras import why_missing
from lddgan.names import Precision
from lddgan.pictures import png
from lddgan.preset import Preset

BUSY = 0.5  # load per core above which the machine was doing something else
LEFT_OUT: Final = "ceilings and PNG files were left out: the trials took all of --max-seconds"


class Subject(NamedTuple):
    """The model of a row."""

    preset: Preset
    random_weights: bool
    exported: Mapping[Precision, Differences]  # what the export of its graphs measured

    @classmethod
    def of(cls, bundle: Bundle) -> Subject:
        return cls(bundle.preset, bundle.has_random_weights, bundle.manifest.verification)


class Extras(NamedTuple):
    """What is measured after the turns, if there is time."""

    ceilings: Ceilings | None = None  # of the GPU
    png_ms: float | None = None
    note: str | None = None


def measure_extras(plan: Plan, preset: Preset, images: Images) -> Extras:
    """Rates of the GPU, and how long the PNGs of the images take."""
    ceilings = measure_ceilings(preset, plan.device) if plan.device == "cuda" else None
    return Extras(ceilings, png_ms(images))


def make_row(
    subject: Subject,
    plan: Plan,
    found: Measurement,
    why_no_torch: str | None,
    here: Machine,
    extras: Extras,
) -> BenchRow:
    """Everything that is known of one run."""
    preset, paper = subject.preset, subject.preset.paper
    settings = torch_settings() if plan.device == "cuda" else None
    cost = measure_cost(preset) if why_missing("torch") is None else None
    roof = Roof(preset, cost, extras.ceilings)
    where_from = commit()
    sides = [
        measured(one, trials, plan.batch, roof)
        for one, trials in zip(found.opened, found.turns.trials, strict=True)
    ]
    baseline = sides[1] if len(sides) > 1 else None
    verified = subject.exported.get(sides[0].precision)  # torch engines need no graph
    return BenchRow(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=where_from,
        dataset=preset.name,
        preset=preset.model_dump(),
        random_weights=subject.random_weights,
        device=plan.device,
        batch=plan.batch,
        seed=plan.seed,
        trials_asked=plan.trials,
        trials=len(found.turns.trials[0]),
        nfe=preset.steps,
        engine=sides[0],
        baseline=baseline,
        ratio=baseline.times.whole.p50 / sides[0].times.whole.p50 if baseline else None,
        agreement=agreement(*found.turns.images) if baseline else None,
        verification=verified.model_dump() if verified else {},
        paper_seconds=paper.seconds if paper else None,
        paper_source=paper.source if paper else None,
        machine=here,
        versions=versions(),
        notes=(
            *notes(subject, plan, found, why_no_torch, here),
            *common_notes(where_from, settings, extras.ceilings),
            *([] if extras.note is None else [extras.note]),
        ),
        png_ms=extras.png_ms,
        torch_settings=settings,
        ceilings=extras.ceilings,
    )


def with_verification(row: BenchRow, found: Verification) -> BenchRow:
    """A row with what verification measured of its engine, and a note if it failed."""
    figures = found.model_dump(mode="json")
    engine = row.engine.model_copy(update={"verification": figures})
    failed = () if found.why_failed is None else (f"verify: {found.why_failed}",)
    return row.model_copy(update={"engine": engine, "notes": (*row.notes, *failed)})


def measured(opened: Opened, trials: Sequence[Trial], batch: int, roof: Roof) -> Measured:
    """One side's part of the row."""
    sampler = opened.side.sampler
    backend = sampler.backend
    facts = backend.facts()
    verification = facts.pop("verification", None)
    precision = cast(Precision, backend.precision)
    times = StageTimes.model_validate(
        {stage: summarise([getattr(trial, stage) for trial in trials]) for stage in Trial._fields}
    )
    medians = StageMilliseconds(times.generator.p50, times.decoder.p50, times.whole.p50)
    return Measured(
        engine=backend.name,
        precision=precision,
        where=backend.where,
        chunk=sampler.chunk,
        times=times,
        images_per_second=batch / (times.whole.p50 / 1e3),
        peak_memory_mib=opened.peak_memory_mib,
        gpu_memory_mib=opened.gpu_memory_mib,
        cuda_graph=backend.fused if backend.device == "cuda" else None,
        plan=facts or None,
        verification=verification,
        achieved=achieved(roof, precision, batch, sampler.chunk, medians),
    )


def agreement(images: Images, true: Images) -> Agreement:
    """Compare uint8 [N,H,W,3] of the engine and of the baseline."""
    equal = bool((images == true).all())
    return Agreement(
        grey_levels=grey_levels(images, true),
        changed=changed(images, true),
        psnr=None if equal else psnr(images, true),
    )


def png_ms(images: Images, clock: Clock = time.perf_counter) -> float:
    """Milliseconds to encode uint8 [N,H,W,3] as PNGs, one after the other."""
    started = clock()
    for image in images:
        png(image)
    return (clock() - started) * 1e3


def notes(
    subject: Subject,
    plan: Plan,
    found: Measurement,
    why_no_torch: str | None,
    here: Machine,
) -> tuple[str, ...]:
    """Sentences that belong to the numbers."""
    done, load = len(found.turns.trials[0]), here.load / here.cores
    fused = found.opened[0].side.sampler.backend.fused
    said = {
        f"{done} of {plan.trials} trials: more do not fit in {seconds(plan.max_seconds)}": (
            done < plan.trials
        ),
        f"no PyTorch baseline: {why_no_torch}": why_no_torch is not None,
        "random weights: timing only": subject.random_weights,
        f"the machine was busy before the run: {load:.1f} processes per core": load > BUSY,
        "the whole is one CUDA graph launch and includes drawing the noise, as the paper's loop "
        "does; the stages are of the same steps launched one by one": fused,
    }
    return tuple(sentence for sentence, holds in said.items() if holds)


def common_notes(
    where_from: str | None, settings: dict[str, bool] | None, ceilings: Ceilings | None
) -> list[str]:
    """Why the commit is unknown, how PyTorch computes fp32, and why there are no ceilings."""
    said = [NO_COMMIT] if where_from is None else []
    said += [in_words(settings)] if settings is not None else []
    return said + ([ceilings.note] if ceilings is not None and ceilings.note is not None else [])
