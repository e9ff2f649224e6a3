"""What a training step costs in time and memory: `lddgan bench --train`.

Each variant of each stage is measured in a process of its own, whose peak memory is its own:
python -m bench.training_step ROW prints that row, in JSON, with what was measured. Eager fp32 comes
first and is what the others are compared with. Weights are as initialised; images and latents are
random and in the device's memory.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from bench.machine import Machine, gpu, machine, peak_memory_mib, run_child, torch_settings
from bench.row import Row, check_rows_file, keep_each, new_row, now, results_file
from bench.run import usable_device
from bench.timing import WARM_UPS, Budget, seconds, summarise, turns_within
from engine.timing import torch_timer
from lddgan.data.images import to_float
from lddgan.errors import BadInput, LddganError
from lddgan.memory import memory_named
from lddgan.names import Device, DeviceName
from lddgan.networks.registry import create
from lddgan.preset import GROUP, Preset, with_values
from lddgan.progress import Log, to_stderr
from lddgan.torch_settings import flushing_denormals
from lddgan.training.autoencoder import AutoencoderGan, training_of
from lddgan.training.generator import Gan
from lddgan.training.loop import NotFinite
from lddgan.training.perceptual import Perceptual
from lddgan.training.ranks import Ranks, joined
from lddgan.training.settings import Settings

StageName = Literal["generator", "autoencoder"]
Run = Callable[[], Any]
Times = dict[str, list[float]]  # of each kind of step, in ms
TimeAll = Callable[[Mapping[str, Run]], Times]
Found = tuple[Times, dict[str, Any]]  # and fields of the row

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
PROGRAM: Final = (sys.executable, "-m", f"{__package__}.training_step")
SEED: Final = 0
WITH_R1, WITHOUT_R1 = 0, 1  # numbers of steps: those that r1_every divides have R1


class Plan(NamedTuple):
    """What one `lddgan bench --train` measures."""

    device: Device
    batch: int | None  # None: that of each stage
    trials: int
    max_seconds: float  # of the trials of each variant; one of each kind is always made
    machine: Machine  # before


def bench_training(
    presets: Sequence[Preset],
    device: DeviceName,
    *,
    trials: int,
    batch: int | None = None,
    max_seconds: float | None = None,
    out: Path | None = None,
    show: Callable[[list[Row]], None] = lambda _: None,
    log: Log = to_stderr,
) -> None:
    """Measure the stages of each preset.

    `auto` is the GPU if PyTorch can use it. `max_seconds` (None: MAX_SECONDS) cuts the trials of
    each variant. Every row is added to `out` (None: `results_file`) as soon as it exists; the rows
    of a stage are shown together. Raises BadInput for unusable arguments, LddganError at the end if
    a baseline failed: that stage has no rows.
    """
    if batch is not None and batch % min(batch, GROUP):
        raise BadInput(f"batch is {batch}, and must be below {GROUP} or a multiple of it")
    stages = [(preset, stage) for preset in presets for stage in stages_of(preset)]
    limit = MAX_SECONDS if max_seconds is None else max_seconds
    plan = Plan(usable_device(device), batch, trials, limit, machine())
    files = {one.name: out or results_file(one.name, plan.device, "training") for one in presets}
    for path in files.values():
        check_rows_file(path)
    failed = []
    for preset, stage in stages:
        try:
            show(keep_each(measure_stage(preset, stage, plan, log), files[preset.name]))
        except LddganError as error:
            failed.append(f"{preset.name}, {stage}: {error}")
    if failed:
        raise LddganError("; ".join(failed))


def stages_of(preset: Preset) -> tuple[StageName, ...]:
    """What is trained. Raises BadInput if the preset does not say how."""
    if not preset.autoencoder.learned:
        return ("generator",)
    training_of(preset)
    return STAGES


def measure_stage(preset: Preset, stage: StageName, plan: Plan, log: Log) -> Iterator[Row]:
    """The rows of one stage, a variant each. Raises LddganError if the baseline does not run."""
    limit, asked = BASELINE_SECONDS, row_to_fill(preset, stage, plan)
    for variant in variants_of(stage, plan.device):
        log(f"{preset.name}, {stage}, batch {asked.batch}: {variant}")
        started = time.monotonic()
        row = in_child(asked.model_copy(update={"variant": variant, "date": now()}), limit)
        if row.why_not is not None:
            if variant == EAGER:
                raise LddganError(f"the baseline did not run: {row.why_not}")
            log(f"did not run: {row.why_not}")
        if variant == EAGER:
            limit = max(LEAST_SECONDS, PATIENCE * (time.monotonic() - started))
        yield row


def row_to_fill(preset: Preset, stage: StageName, plan: Plan) -> Row:
    """The row of a stage before a variant is measured."""
    whole = preset.training.batch if stage == "generator" else training_of(preset).batch
    batch = plan.batch or (whole if plan.device == "cuda" else min(whole, cpu_batch(preset, stage)))
    notes = ["weights as initialised, random images and latents in memory: timing only"]
    if batch != whole:
        notes.append(f"batch {batch}, and {whole} in training")
    if stage == "autoencoder":
        cfg = training_of(preset)
        lpips, patches = cfg.perceptual_weight > 0, cfg.disc_weight > 0
        notes += [
            "LPIPS is included, with random weights" if lpips else "this preset has no LPIPS",
            f"the patch discriminator {'takes part' if patches else 'is not used'}",
        ]
    section = "training" if stage == "generator" else "autoencoder_training"
    return new_row(
        "training",
        now(),
        notes,
        dataset=preset.name,
        preset=with_values(preset, {f"{section}.batch": batch}).model_dump(),
        stage=stage,
        device=plan.device,
        batch=batch,
        trials_asked=plan.trials,
        max_seconds=plan.max_seconds,
        machine=plan.machine,
        torch_settings=torch_settings(plan.device),
    )


def cpu_batch(preset: Preset, stage: StageName) -> int:
    """The largest batch on a CPU, unless asked otherwise."""
    large = stage == "autoencoder" and preset.image_size >= LARGE_SIDE
    return CPU_LARGE_BATCH if large else CPU_BATCH


def variants_of(stage: StageName, device: Device) -> list[str]:
    """The baseline, then what may be faster."""
    compiled = stage == "generator" and device == "cuda"
    return [name for name in VARIANTS if compiled or name != COMPILED]


def in_child(asked: Row, limit: float) -> Row:
    """The row as a process of its own fills it within `limit` seconds, or with why it did not."""
    with tempfile.TemporaryFile("w+") as said:
        why_not = run_child((*PROGRAM, asked.line()), limit, stdout=said)
        said.seek(0)
        lines = said.read().splitlines()
    if why_not is None:
        try:
            return Row.model_validate_json(lines[-1])
        except (IndexError, ValidationError):
            why_not = "it ended without a result"
    return asked.model_copy(update={"why_not": why_not})


# ---- In the process of a variant ----


def measure(asked: Row) -> Row:
    """Warm up and time what a row asks for. Returns it filled.

    Raises OutOfMemory, or LddganError if a loss is not finite.
    """
    device = asked.device or "cpu"
    preset, variant = Preset.model_validate(asked.preset), VARIANTS[asked.variant or EAGER]
    settings = Settings(out=Path(), device=device, **variant)  # writes nothing
    stage = generator_stage if asked.stage == "generator" else autoencoder_stage
    with joined(device) as ranks, torch.random.fork_rng(), flushing_denormals():
        torch.manual_seed(SEED)
        try:
            with memory_named("{} has too little memory for this batch"):
                times, found = stage(preset, settings, ranks, partial(time_all, asked))
        except NotFinite as error:
            raise LddganError(f"its time means nothing: {error}") from error
    found["facts"] = found.get("facts", {}) | {"threads": torch.get_num_threads()}
    found["ms"] = {name: summarise(ms) for name, ms in times.items()}
    found["trials"] = len(times.get("with_r1") or times["plain"])
    fewest, trials = min(map(len, times.values())), asked.trials_asked or 0
    if fewest < trials:
        limit = f"{seconds(asked.max_seconds or 0.0)} (--max-seconds)"
        few = f"as few as {fewest} of {trials} trials: more do not fit in {limit}"
        found["notes"] = (*asked.notes, few)
    if device == "cuda" and asked.machine is not None:
        found["machine"] = asked.machine.model_copy(update={"gpu": gpu()})
    return asked.model_copy(update=found)


def generator_stage(preset: Preset, settings: Settings, ranks: Ranks, time_all: TimeAll) -> Found:
    """D's and G's step on latents in memory; then the encoding, and the memory of both together."""
    gan = Gan(preset, settings, ranks)
    moments = torch.randn(preset.training.batch, *preset.moments_shape, device=ranks.device)
    steps: dict[str, Run] = {"with_r1": lambda: gan.step(moments, WITH_R1, 0.0)}
    if preset.training.r1_every > 1:
        steps["plain"] = lambda: gan.step(moments, WITHOUT_R1, 0.0)
    times, peak = time_all(steps), peak_mib(ranks.device)

    autoencoder = create("autoencoder", preset).eval().requires_grad_(False)
    autoencoder.to(ranks.device, **settings.layout())
    rows = pixels(preset, preset.training.batch, ranks.device)

    def encode() -> Tensor:  # as `train_generator` does without stored latents
        with settings.autocast(ranks.device):
            return autoencoder.moments(to_float(rows)).float()

    times |= time_all({"encode": encode})
    gan.step(encode(), WITH_R1, 0.0)
    encoded = {"encode_peak_mib": peak_mib(ranks.device)}
    return times, {"peak_memory_mib": peak, "facts": encoded}


def autoencoder_stage(preset: Preset, settings: Settings, ranks: Ranks, time_all: TimeAll) -> Found:
    """The autoencoder's step with the patch discriminator.

    LPIPS has random weights, which cost what its own do and need no download.
    """
    cfg, perceptual = training_of(preset), None
    if cfg.perceptual_weight:
        perceptual = Perceptual().eval().requires_grad_(False).to(ranks.device)
    gan = AutoencoderGan(preset, settings, ranks, perceptual)
    rows = pixels(preset, cfg.batch, ranks.device)
    times = time_all({"plain": lambda: gan.step(to_float(rows), cfg.disc_start, 0.0)})
    return times, {"peak_memory_mib": peak_mib(ranks.device)}


def pixels(preset: Preset, batch: int, device: torch.device) -> Tensor:
    """Random images as a pipeline delivers them, uint8 [B,3,H,W]."""
    return torch.randint(0, 256, (batch, *preset.image_shape), dtype=torch.uint8, device=device)


def time_all(asked: Row, runs: Mapping[str, Run]) -> Times:
    """Warm each up, then run them in turns, as often as was asked for or as fits: in ms."""
    device = asked.device or "cpu"
    timer = torch_timer(device)
    for run in runs.values():
        for _ in range(WARM_UPS[device]):
            run()
    taken: Times = {name: [] for name in runs}
    for _ in turns_within(Budget(asked.max_seconds or 0.0), asked.trials_asked or 1):
        for name, run in runs.items():
            start = timer.mark()
            run()
            taken[name].append(timer.milliseconds(start, timer.mark()))
    return taken


def peak_mib(device: torch.device) -> float | None:
    """The most memory so far: what torch allocated on the GPU, or this process's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory_mib()


def main(arguments: Sequence[str]) -> int:
    """Fill the row in `arguments`. Returns the exit code."""
    try:
        print(measure(Row.model_validate_json(arguments[0])).line())
    except LddganError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
