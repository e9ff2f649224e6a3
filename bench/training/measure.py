"""What a training step costs, in time and memory: `lddgan bench --train`.

Each variant of each stage is a process of its own (bench/training/child.py), one after the other;
eager fp32 comes first and is what the others are compared with.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, get_args

from pydantic import ValidationError

from bench.assemble import BUSY, common_notes
from bench.child import run_child
from bench.machine import commit, load, machine, torch_settings, versions
from bench.roofline import Device
from bench.run import check_arguments, why_no_baseline
from bench.timing import seconds
from bench.training.row import (
    Found,
    Job,
    Measured,
    Result,
    Row,
    StageName,
    TrainingRow,
    Variant,
    append_row,
    mean_step,
    read_rows,
    training_file,
)
from lddgan.errors import BadInput, LddganError
from lddgan.extras import require
from lddgan.names import DeviceName
from lddgan.preset import GROUP, Preset, with_values
from lddgan.presets import get_preset
from lddgan.progress import Log, to_stderr

BIG: Final = ("cifar10", "celeba_256", "lsun")  # what is measured unless one is named
STAGES: Final[tuple[StageName, ...]] = get_args(StageName)
MAX_SECONDS: Final = 60.0  # for the trials of each variant, unless asked otherwise
LONGEST: Final = 7200.0  # seconds for the process of the baseline
PATIENCE: Final = 4  # times as long as the baseline's process another one may take,
LEAST: Final = 900.0  # or so many seconds, since torch.compile takes minutes
CPU_BATCH: Final = 8  # by default
CPU_LARGE_BATCH: Final = 2  # for the autoencoder of large images
LARGE: Final = 128  # side
PROGRAM: Final = (sys.executable, "-m", "bench.training.child")

EAGER: Final = Variant(name="fp32")
VARIANTS: Final = (
    EAGER,
    Variant(name="fp32 channels-last", channels_last=True),
    Variant(name="bf16 channels-last", bf16=True, channels_last=True),
)
COMPILED: Final = Variant(  # of the generator's stage, on a GPU; the other stage has no such switch
    name="bf16 channels-last compiled", bf16=True, channels_last=True, compile=True
)


class Plan(NamedTuple):
    """What one command measures."""

    device: Device
    batch: int | None  # None: `default_batch`
    trials: int
    max_seconds: float
    load: float  # of the machine before


def bench_training(
    presets: Sequence[Preset],
    device: DeviceName,
    *,
    batch: int | None = None,
    trials: int = 300,
    max_seconds: float | None = None,
    data: Path | None = None,
    workers: int = 0,
    out: Path | None = None,
    show: Callable[[Row], None] = lambda _: None,
    log: Log = to_stderr,
) -> None:
    """Measure both stages of each preset, and the pipeline of its `data`, if given, before them.

    `auto` is the GPU if torch can use one.  `max_seconds` (None: MAX_SECONDS) cuts the trials of
    each variant.  Every row is shown and added to `out` (None: `training_file`) when it is there.
    Raises BadInput for arguments that cannot be used, LddganError at the end if a baseline failed:
    that stage has no row.
    """
    require("torch", "safetensors")
    check(presets, batch, trials, max_seconds, data)
    limit = MAX_SECONDS if max_seconds is None else max_seconds
    plan = Plan(device_of(device), batch, trials, limit, load())
    files = {preset.name: out or training_file(preset.name, plan.device) for preset in presets}
    for path in files.values():
        if path.exists():
            read_rows(path)  # one that holds something else is refused before, not after

    def keep(row: Row) -> None:
        append_row(row, files[row.dataset])
        show(row)

    if data is not None:
        keep(pipeline_row(presets[0], data, workers, plan, log))
    failed = []
    for preset in presets:
        for stage in STAGES:
            try:
                keep(measure_stage(preset, stage, plan, log))
            except LddganError as error:
                failed.append(f"{preset.name}, {stage}: {error}")
    if failed:
        raise LddganError("; ".join(failed))


def presets_of(dataset: str | None) -> list[Preset]:
    """The preset of a name, or the big ones. Raises BadInput for an unknown name."""
    return [get_preset(name) for name in (BIG if dataset is None else (dataset,))]


def check(
    presets: Sequence[Preset],
    batch: int | None,
    trials: int,
    max_seconds: float | None,
    data: Path | None,
) -> None:
    """Raise BadInput unless this can be measured."""
    from lddgan.training.autoencoder import training_of

    check_arguments(1 if batch is None else batch, trials, 0, max_seconds)
    if batch is not None and batch % min(batch, GROUP):
        raise BadInput(f"batch is {batch}, and must be below {GROUP} or a multiple of it")
    if data is not None and len(presets) != 1:
        raise BadInput("--data holds the images of one model; name it with --dataset")
    for preset in presets:
        training_of(preset)


def device_of(asked: DeviceName) -> Device:
    """Where it is measured. Raises LddganError for a GPU that torch cannot use."""
    why_not = why_no_baseline("cuda") if asked != "cpu" else None
    if asked == "cuda" and why_not is not None:
        raise LddganError(why_not)
    return "cpu" if asked == "cpu" or why_not is not None else "cuda"


def pipeline_row(preset: Preset, data: Path, workers: int, plan: Plan, log: Log) -> Row:
    """The data pipeline alone."""
    from bench.training.pipeline import measure_pipeline

    log(f"{preset.name}: the data pipeline")
    return measure_pipeline(
        preset,
        data,
        plan.device,
        batch=plan.batch,
        workers=workers,
        trials=plan.trials,
        max_seconds=plan.max_seconds,
        load=plan.load,
        log=log,
    )


def measure_stage(preset: Preset, stage: StageName, plan: Plan, log: Log) -> TrainingRow:
    """Every variant of one stage. Raises LddganError if the baseline does not run."""
    batch = default_batch(preset, stage, plan.device) if plan.batch is None else plan.batch
    job = Job(
        preset=with_batch(preset, stage, batch),
        stage=stage,
        variant=EAGER,
        device=plan.device,
        trials=plan.trials,
        max_seconds=plan.max_seconds,
    )
    every = preset.training.r1_every if stage == "generator" else None
    results = measure_variants(job, variants_of(stage, plan.device), every, log)
    measured = [one.found.measured for one in results if one.found is not None]
    settings = torch_settings() if plan.device == "cuda" else None
    here, where_from = machine(plan.load, measured[0].gpu), commit()
    said = [
        *notes(job, training_batch(preset, stage), measured),
        *common_notes(where_from, settings, None),
    ]
    if here.load / here.cores > BUSY:
        said.append(f"the machine was busy before: {here.load / here.cores:.1f} processes per core")
    return TrainingRow(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=where_from,
        dataset=preset.name,
        preset=preset.model_dump(),
        stage=stage,
        device=plan.device,
        batch=batch,
        training_batch=training_batch(preset, stage),
        r1_every=every,
        trials_asked=plan.trials,
        max_seconds=plan.max_seconds,
        results=tuple(results),
        machine=here,
        versions=versions(),
        torch_settings=settings,
        notes=tuple(said),
    )


def default_batch(preset: Preset, stage: StageName, device: Device) -> int:
    """The training's batch on a GPU, on a CPU a few images."""
    whole = training_batch(preset, stage)
    if device == "cuda":
        return whole
    large = stage == "autoencoder" and preset.image_size > LARGE
    return min(whole, CPU_LARGE_BATCH if large else CPU_BATCH)


def training_batch(preset: Preset, stage: StageName) -> int:
    """The batch that a stage is trained with. Raises BadInput if the preset does not say."""
    from lddgan.training.autoencoder import training_of

    return preset.training.batch if stage == "generator" else training_of(preset).batch


def with_batch(preset: Preset, stage: StageName, batch: int) -> Preset:
    """`preset` with another batch of one stage."""
    section = "training" if stage == "generator" else "autoencoder_training"
    return with_values(preset, {f"{section}.batch": batch})


def variants_of(stage: StageName, device: Device) -> tuple[Variant, ...]:
    """The baseline, then what may be faster."""
    compiled = stage == "generator" and device == "cuda"
    return (*VARIANTS, COMPILED) if compiled else VARIANTS


def measure_variants(
    job: Job, variants: Sequence[Variant], r1_every: int | None, log: Log
) -> list[Result]:
    """The variants one after the other, the first of which must run.

    Raises LddganError if it does not.
    """
    results: list[Result] = []
    limit, baseline = LONGEST, None
    for variant in variants:
        log(f"{job.preset.name}, {job.stage}, batch {batch_of(job)}: {variant.name}")
        started = time.monotonic()
        measured = in_child(job.model_copy(update={"variant": variant}), limit)
        if isinstance(measured, str):
            if baseline is None:
                raise LddganError(f"the baseline did not run: {measured}")
            log(f"did not run: {measured}")
            results.append(Result(variant=variant, found=None, why_not=measured))
            continue
        if baseline is None:
            baseline, limit = measured, max(LEAST, PATIENCE * (time.monotonic() - started))
        found = compared(measured, baseline, batch_of(job), r1_every)
        results.append(Result(variant=variant, found=found, why_not=None))
    return results


def batch_of(job: Job) -> int:
    return training_batch(job.preset, job.stage)


def in_child(job: Job, limit: float) -> Measured | str:
    """What a process of its own measures in at most `limit` seconds, or why it did not."""
    with tempfile.TemporaryFile("w+") as said:
        why_not = run_child((*PROGRAM, job.model_dump_json()), limit, stdout=said)
        if why_not is not None:
            return why_not
        said.seek(0)
        lines = said.read().splitlines()
    try:
        return Measured.model_validate_json(lines[-1])
    except (IndexError, ValidationError):
        return "it ended without a result"


def compared(measured: Measured, baseline: Measured, batch: int, r1_every: int | None) -> Found:
    """A variant beside the baseline, which may be the same."""
    step, its_step = mean_step(measured, r1_every), mean_step(baseline, r1_every)
    encoded, its_encoded = with_encoding(measured, step), with_encoding(baseline, its_step)
    return Found(
        measured=measured,
        step_ms=step,
        images_per_second=batch / step * 1e3,
        ratio=its_step / step,
        encoded_ms=encoded,
        encoded_images_per_second=None if encoded is None else batch / encoded * 1e3,
        encoded_ratio=None if encoded is None or its_encoded is None else its_encoded / encoded,
    )


def with_encoding(measured: Measured, step: float) -> float | None:
    """Milliseconds of a step and of the encoding of its images; None if nothing is encoded."""
    return None if measured.encode is None else measured.encode.ms.p50 + step


def notes(job: Job, whole: int, measured: Sequence[Measured]) -> list[str]:
    """Sentences that belong to the numbers; `whole` is the training's batch."""
    kinds = [kind for one in measured for kind in (one.plain, one.with_r1, one.encode) if kind]
    fewest = min(kind.trials for kind in kinds)
    cfg = job.preset.autoencoder_training if job.stage == "autoencoder" else None
    said = {
        "weights as initialised, random images and latents in memory: timing only": True,
        f"batch {batch_of(job)}, and {whole} in training": batch_of(job) != whole,
        f"as few as {fewest} of {job.trials} trials: more do not fit in "
        f"{seconds(job.max_seconds)} (--max-seconds)": fewest < job.trials,
        "LPIPS is included, with random weights": cfg is not None and cfg.perceptual_weight > 0,
        "this preset trains without LPIPS": cfg is not None and cfg.perceptual_weight == 0,
        "the patch discriminator takes part": cfg is not None and cfg.disc_weight > 0,
        "this preset trains without a patch discriminator": (
            cfg is not None and cfg.disc_weight == 0
        ),
    }
    return [sentence for sentence, holds in said.items() if holds]
