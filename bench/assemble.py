"""From what was measured to the row that says everything about it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

from bench.ceilings import Ceilings, Roof, StageMilliseconds, achieved, measure_ceilings
from bench.cost import measure_cost
from bench.machine import Machine, commit, in_words, torch_settings, versions
from bench.row import Agreement, BenchRow, Measured, StageTimes
from bench.timing import Clock, Measurement, Opened, Plan, Trial, seconds, summarise
from engine.output import png
from engine.sampler import Images
from export.bundle import Bundle
from export.compare import changed, grey_levels, psnr
from export.graphs import Precision
from lddgan.extras import why_missing

BUSY = 0.5  # load per core above which the machine was doing something else


def make_row(
    bundle: Bundle, plan: Plan, found: Measurement, why_no_torch: str | None, here: Machine
) -> BenchRow:
    """Everything that is known of one run; measures the ceilings and the PNGs, after it."""
    preset, paper = bundle.preset, bundle.preset.paper
    on_gpu = plan.device == "cuda"
    settings = torch_settings() if on_gpu else None
    ceilings = measure_ceilings(preset, plan.device) if on_gpu else None
    cost = measure_cost(preset) if why_missing("torch") is None else None
    roof = Roof(preset, cost, ceilings)
    sides = [
        measured(one, trials, plan.batch, roof)
        for one, trials in zip(found.opened, found.turns.trials, strict=True)
    ]
    baseline = sides[1] if len(sides) > 1 else None
    verified = bundle.manifest.verification.get(sides[0].precision)  # torch engines need no graph
    return BenchRow(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        dataset=preset.name,
        preset=preset.model_dump(),
        random_weights=bundle.has_random_weights,
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
            *notes(bundle, plan, found, why_no_torch, here),
            *gpu_notes(settings, ceilings),
        ),
        png_ms=png_ms(found.turns.images[0]),
        torch_settings=settings,
        ceilings=ceilings,
    )


def measured(opened: Opened, trials: Sequence[Trial], batch: int, roof: Roof) -> Measured:
    """One side's part of the row."""
    sampler = opened.side.sampler
    backend: Any = sampler.backend
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
        plan=getattr(backend, "plan", None),
        verification=getattr(backend, "verification", None),
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
    bundle: Bundle,
    plan: Plan,
    found: Measurement,
    why_no_torch: str | None,
    here: Machine,
) -> tuple[str, ...]:
    """Sentences that belong to the numbers."""
    done, load = len(found.turns.trials[0]), here.load / here.cores
    fused = found.opened[0].side.sampler.backend.fused
    said = {
        f"{done} of {plan.trials} trials: more do not fit in {seconds(plan.max_seconds)} "
        "(--max-seconds)": done < plan.trials,
        f"no PyTorch baseline: {why_no_torch}": why_no_torch is not None,
        "random weights: timing only": bundle.has_random_weights,
        f"the machine was busy before the run: {load:.1f} processes per core": load > BUSY,
        "the whole is one CUDA graph launch and includes drawing the noise, as the paper's loop "
        "does; the stages are of the same steps launched one by one": fused,
    }
    return tuple(sentence for sentence, holds in said.items() if holds)


def gpu_notes(settings: dict[str, bool] | None, ceilings: Ceilings | None) -> list[str]:
    """How PyTorch computes fp32, and why there are no ceilings."""
    said = [] if settings is None else [in_words(settings)]
    return said if ceilings is None or ceilings.note is None else [*said, ceilings.note]
