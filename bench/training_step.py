"""What a training step costs in time and memory: `lddgan bench --train`.

Each variant of each stage is measured in a process of its own, whose peak memory is its own:
python -m bench.training_step JOB prints its row; JOB is a `Job` in JSON. Eager fp32 comes first
and is what the others are compared with. Weights are as initialised; images and latents are random
and in the device's memory.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from pydantic import ConfigDict, ValidationError
from torch import Tensor

from bench.machine import gpu, load, machine, peak_memory_mib, run_child, torch_settings
from bench.pipeline import Plan, measure_pipeline
from bench.roofline import Device
from bench.row import Row, add_rows, new_row, now, read_rows, results_file
from bench.run import check_arguments, usable_device, why_no_baseline
from bench.timing import WARM_UPS, Budget, seconds, summarise, turns_within
from engine.timing import torch_timer
from lddgan.data.images import to_float
from lddgan.errors import BadInput, LddganError, OutOfMemory
from lddgan.frozen import Frozen
from lddgan.names import DeviceName
from lddgan.networks.registry import create
from lddgan.preset import GROUP, Preset, with_values
from lddgan.presets import get_preset
from lddgan.progress import Log, to_stderr
from lddgan.torch_settings import flushing_denormals
from lddgan.training.autoencoder import AutoencoderGan, training_of
from lddgan.training.generator import Gan
from lddgan.training.latents import encode_moments
from lddgan.training.loop import NotFinite
from lddgan.training.perceptual import Perceptual
from lddgan.training.ranks import Ranks, joined
from lddgan.training.settings import Settings

StageName = Literal["generator", "autoencoder"]
Run = Callable[[], Any]

BIG: Final = ("cifar10", "celeba_256", "lsun")  # measured unless one is named
STAGES: Final[tuple[StageName, ...]] = get_args(StageName)
EAGER: Final = "fp32"
COMPILED: Final = "bf16 channels-last compiled"  # the generator's stage on a GPU only
VARIANTS: Final[dict[str, dict[str, Any]]] = {  # by the switches of `lddgan train`
    EAGER: {},
    "fp32 channels-last": {"channels_last": True},
    "bf16 channels-last": {"bf16": True, "channels_last": True},
    COMPILED: {"bf16": True, "channels_last": True, "compile": True},
}
MAX_SECONDS: Final = 60.0  # for the trials of each variant, unless asked otherwise
BASELINE_SECONDS: Final = 7200.0  # for the baseline's process
PATIENCE: Final = 4  # times as long as the baseline's process another one may take,
LEAST_SECONDS: Final = 900.0  # or this long: torch.compile takes minutes
CPU_BATCH: Final = 8  # by default
CPU_LARGE_BATCH: Final = 2  # for the autoencoder of images from LARGE_SIDE on
LARGE_SIDE: Final = 256
PROGRAM: Final = (sys.executable, "-m", "bench.training_step")
SEED: Final = 0
WITH_R1, WITHOUT_R1 = 0, 1  # numbers of steps: those that r1_every divides have R1


class Job(Frozen):
    """What one process measures."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    preset: Preset  # with the batch to be measured
    training_batch: int  # the preset's own
    stage: StageName
    variant: str
    device: Device
    trials: int
    max_seconds: float
    load: float
    session: str

    @property
    def batch(self) -> int:
        return training_batch(self.preset, self.stage)

    def fields(self) -> dict[str, Any]:
        """The fields of a row that are about what was asked for."""
        same = self.model_dump(include={"stage", "variant", "device", "max_seconds"})
        asked = {"dataset": self.preset.name, "preset": self.preset.model_dump()}
        return asked | same | {"batch": self.batch, "trials_asked": self.trials}


def presets_of(dataset: str | None) -> list[Preset]:
    """The preset of a name, or the big ones. Raises BadInput for an unknown name."""
    return [get_preset(name) for name in (BIG if dataset is None else (dataset,))]


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
    show: Callable[[list[Row]], None] = lambda _: None,
    log: Log = to_stderr,
) -> None:
    """Measure both stages of each preset, and before them the pipeline of `data` if given.

    `auto` is the GPU if torch can use one. `max_seconds` (None: MAX_SECONDS) cuts the trials of
    each variant. Every row is added to `out` (None: `results_file`) as soon as it exists; the rows
    of a stage are shown together. Raises BadInput for unusable arguments, LddganError at the end if
    a baseline failed: that stage has no rows.
    """
    check(presets, batch, trials, max_seconds, data)
    limit = MAX_SECONDS if max_seconds is None else max_seconds
    plan = Plan(usable_device(device, why_no_baseline("cuda")), batch, trials, limit, load())
    files = {one.name: out or results_file(one.name, plan.device, "training") for one in presets}
    for path in files.values():
        if path.exists():
            read_rows(path)  # refused now rather than after the first row

    def keep(rows: Iterator[Row]) -> None:
        made = []
        for row in rows:
            made.append(row)
            add_rows([row], files[row.dataset])
        show(made)

    if data is not None:
        log(f"{presets[0].name}: the data pipeline")
        keep(iter([measure_pipeline(presets[0], data, plan, workers, log)]))
    failed = []
    for preset in presets:
        for stage in STAGES:
            try:
                keep(measure_stage(preset, stage, plan, log))
            except LddganError as error:
                failed.append(f"{preset.name}, {stage}: {error}")
    if failed:
        raise LddganError("; ".join(failed))


def check(
    presets: Sequence[Preset],
    batch: int | None,
    trials: int,
    max_seconds: float | None,
    data: Path | None,
) -> None:
    """Raise BadInput unless this can be measured."""
    check_arguments(1 if batch is None else batch, trials, 0, max_seconds)
    if batch is not None and batch % min(batch, GROUP):
        raise BadInput(f"batch is {batch}, and must be below {GROUP} or a multiple of it")
    if data is not None and len(presets) != 1:
        raise BadInput("--data holds the images of one model; name it with --dataset")
    for preset in presets:
        training_of(preset)


def measure_stage(preset: Preset, stage: StageName, plan: Plan, log: Log) -> Iterator[Row]:
    """The rows of one stage, a variant each. Raises LddganError if the baseline does not run."""
    batch = default_batch(preset, stage, plan.device) if plan.batch is None else plan.batch
    section = "training" if stage == "generator" else "autoencoder_training"
    given = with_values(preset, {f"{section}.batch": batch})
    session, limit = now(), BASELINE_SECONDS
    for variant in variants_of(stage, plan.device):
        log(f"{preset.name}, {stage}, batch {batch}: {variant}")
        job = Job(
            preset=given,
            training_batch=training_batch(preset, stage),
            stage=stage,
            variant=variant,
            device=plan.device,
            trials=plan.trials,
            max_seconds=plan.max_seconds,
            load=plan.load,
            session=session,
        )
        started = time.monotonic()
        row = in_child(job, limit)
        if row.why_not is not None:
            if variant == EAGER:
                raise LddganError(f"the baseline did not run: {row.why_not}")
            log(f"did not run: {row.why_not}")
        if variant == EAGER:
            limit = max(LEAST_SECONDS, PATIENCE * (time.monotonic() - started))
        yield row


def default_batch(preset: Preset, stage: StageName, device: Device) -> int:
    """The training's batch on a GPU, a few images on a CPU."""
    whole = training_batch(preset, stage)
    if device == "cuda":
        return whole
    large = stage == "autoencoder" and preset.image_size >= LARGE_SIDE
    return min(whole, CPU_LARGE_BATCH if large else CPU_BATCH)


def training_batch(preset: Preset, stage: StageName) -> int:
    """The batch that a stage is trained with. Raises BadInput if the preset does not say."""
    return preset.training.batch if stage == "generator" else training_of(preset).batch


def variants_of(stage: StageName, device: Device) -> list[str]:
    """The baseline, then what may be faster."""
    compiled = stage == "generator" and device == "cuda"
    return [name for name in VARIANTS if compiled or name != COMPILED]


def in_child(job: Job, limit: float) -> Row:
    """The row that a process of its own makes in at most `limit` seconds, or why it made none."""
    with tempfile.TemporaryFile("w+") as said:
        why_not = run_child((*PROGRAM, job.model_dump_json()), limit, stdout=said)
        said.seek(0)
        lines = said.read().splitlines()
    if why_not is None:
        try:
            return Row.model_validate_json(lines[-1])
        except (IndexError, ValidationError):
            why_not = "it ended without a result"
    return new_row("training", job.session, why_not=why_not, **job.fields())


# ---- In the process of a variant ----


def measure(job: Job) -> Row:
    """Warm up and time what `job` says.

    Raises OutOfMemory if that of the GPU is too small, LddganError if a loss is not finite.
    """
    settings = Settings(out=Path(), device=job.device, **VARIANTS[job.variant])  # writes nothing
    stage = generator_stage if job.stage == "generator" else autoencoder_stage
    with joined(job.device) as ranks, torch.random.fork_rng(), flushing_denormals():
        torch.manual_seed(SEED)
        try:
            times, fields = stage(job, settings, ranks)
        except NotFinite as error:
            raise LddganError(f"its time means nothing: {error}") from error
        except torch.OutOfMemoryError as error:
            raise OutOfMemory("the GPU has too little memory for this batch") from error
    fields["facts"]["threads"] = torch.get_num_threads()
    fewest = min(map(len, times.values()))
    return new_row(
        "training",
        job.session,
        notes_of(job, fewest),
        ms={name: summarise(ms) for name, ms in times.items()},
        trials=len(times.get("with_r1") or times["plain"]),
        torch_settings=torch_settings() if job.device == "cuda" else None,
        **job.fields(),
        **fields,
    )


def generator_stage(
    job: Job, settings: Settings, ranks: Ranks
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """D's and G's step on latents in memory; then the encoding, and the memory of both together."""
    preset = job.preset
    gan = Gan(preset, settings, ranks)
    moments = torch.randn(job.batch, *preset.moments_shape, device=ranks.device)
    steps: dict[str, Run] = {"with_r1": lambda: gan.step(moments, WITH_R1, 0.0)}
    if preset.training.r1_every > 1:
        steps["plain"] = lambda: gan.step(moments, WITHOUT_R1, 0.0)
    times = time_all(steps, job)
    fields = state_after(job)
    encode = encoder(preset, settings, ranks)
    times |= time_all({"encode": encode}, job)
    gan.step(encode(), WITH_R1, 0.0)
    fields["facts"] = {"encode_peak_mib": peak_mib(job.device)}
    return times, fields


def encoder(preset: Preset, settings: Settings, ranks: Ranks) -> Callable[[], Tensor]:
    """Encodes a batch of images as `train_generator` does without stored latents."""
    autoencoder = create("autoencoder", preset).eval().requires_grad_(False)
    autoencoder.to(ranks.device, **settings.layout())
    rows = pixels(preset, preset.training.batch, ranks.device)

    def encode() -> Tensor:
        with settings.autocast(ranks.device):
            return encode_moments(autoencoder, to_float(rows)).float()

    return encode


def autoencoder_stage(
    job: Job, settings: Settings, ranks: Ranks
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """The autoencoder's step with the patch discriminator.

    LPIPS has random weights, which cost what its own do and need no download.
    """
    preset, cfg = job.preset, training_of(job.preset)
    perceptual = None
    if cfg.perceptual_weight:
        perceptual = Perceptual().eval().requires_grad_(False).to(ranks.device)
    gan = AutoencoderGan(preset, settings, ranks, perceptual)
    rows = pixels(preset, cfg.batch, ranks.device)
    times = time_all({"plain": lambda: gan.step(to_float(rows), cfg.disc_start, 0.0)}, job)
    return times, state_after(job)


def pixels(preset: Preset, batch: int, device: torch.device) -> Tensor:
    """Random images as a pipeline delivers them, uint8 [B,3,H,W]."""
    return torch.randint(0, 256, (batch, *preset.image_shape), dtype=torch.uint8, device=device)


def time_all(runs: Mapping[str, Run], job: Job) -> dict[str, list[float]]:
    """Warm each up, then run them in turns, `job.trials` times or as often as fits: in ms."""
    timer = torch_timer(job.device)
    for run in runs.values():
        for _ in range(WARM_UPS[job.device]):
            run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in turns_within(Budget(job.max_seconds), job.trials):
        for name, run in runs.items():
            start = timer.mark()
            run()
            taken[name].append(timer.milliseconds(start, timer.mark()))
    return taken


def state_after(job: Job) -> dict[str, Any]:
    """The machine and the peak memory right after the steps, as fields of a row."""
    here = machine(job.load, gpu() if job.device == "cuda" else None)
    return {"machine": here, "peak_memory_mib": peak_mib(job.device), "facts": {}}


def peak_mib(device: Device) -> float | None:
    """The most memory so far: what torch allocated on the GPU, or this process's on the CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory_mib()


def notes_of(job: Job, fewest: int) -> list[str]:
    """What a reader of a variant's row must know; `fewest` trials were made of a kind."""
    cfg = job.preset.autoencoder_training if job.stage == "autoencoder" else None
    said = {
        "weights as initialised, random images and latents in memory: timing only": True,
        f"batch {job.batch}, and {job.training_batch} in training": job.batch != job.training_batch,
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


def main(arguments: Sequence[str]) -> int:
    """Measure the job in `arguments`. Returns the exit code."""
    try:
        print(measure(Job.model_validate_json(arguments[0])).line())
    except LddganError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
