"""One variant of one stage of the training, in a process of its own, whose peak memory is its own.

python -m bench.training.child JOB prints a `Measured`; JOB is a `Job`; both are JSON.  Weights are
as initialised, images and latents random and in the device's memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from bench.machine import gpu, peak_memory_mib
from bench.roofline import Device
from bench.timing import WARM_UPS, Budget, summarise
from bench.training.row import Job, Measured, Timed
from engine.timing import Timer, torch_timer
from lddgan.data.images import to_float
from lddgan.errors import LddganError, OutOfMemory
from lddgan.networks.registry import create_autoencoder
from lddgan.preset import Preset
from lddgan.torch_settings import flushing_denormals
from lddgan.training.autoencoder import AutoencoderGan, training_of
from lddgan.training.generator import Gan
from lddgan.training.latents import encode_moments
from lddgan.training.loop import NotFinite
from lddgan.training.perceptual import Perceptual
from lddgan.training.ranks import Ranks, joined
from lddgan.training.settings import Settings

SEED: Final = 0
WITH_R1, WITHOUT_R1 = 0, 1  # numbers of steps: those that r1_every divides have R1

Run = Callable[[], Any]


def measure(job: Job) -> Measured:
    """Warm up and time what `job` says.

    Raises OutOfMemory if the GPU's does not suffice, LddganError if a loss is not finite.
    """
    settings = Settings(
        out=Path(),  # nothing is written
        device=job.device,
        bf16=job.variant.bf16,
        channels_last=job.variant.channels_last,
        compile=job.variant.compile,
    )
    stage = generator_stage if job.stage == "generator" else autoencoder_stage
    with joined(job.device) as ranks, torch.random.fork_rng(), flushing_denormals():
        torch.manual_seed(SEED)
        try:
            return stage(job, settings, ranks)
        except NotFinite as error:
            raise LddganError(f"its time means nothing: {error}") from error
        except torch.OutOfMemoryError as error:
            raise OutOfMemory("the GPU has too little memory for this batch") from error


def generator_stage(job: Job, settings: Settings, ranks: Ranks) -> Measured:
    """D's and G's step on latents at hand; then the encoding, and the memory of both together."""
    preset, every = job.preset, job.preset.training.r1_every
    gan = Gan(preset, settings, ranks)
    shape = (preset.training.batch, *preset.moments_shape)
    moments = torch.randn(shape, device=ranks.device)
    steps: dict[str, Run] = {"with_r1": lambda: gan.step(moments, WITH_R1, 0.0)}
    if every > 1:
        steps["plain"] = lambda: gan.step(moments, WITHOUT_R1, 0.0)
    timed = time_all(steps, job)
    state, peak = gpu() if job.device == "cuda" else None, peak_mib(job.device)
    encode = encoder(preset, settings, ranks)
    timed |= time_all({"encode": encode}, job)
    gan.step(encode(), WITH_R1, 0.0)
    return Measured(
        plain=timed.get("plain"),
        with_r1=timed["with_r1"],
        encode=timed["encode"],
        peak_memory_mib=peak,
        peak_encoding_mib=peak_mib(job.device),
        threads=torch.get_num_threads(),
        gpu=state,
    )


def encoder(preset: Preset, settings: Settings, ranks: Ranks) -> Callable[[], Tensor]:
    """Encodes a batch of images as `train_generator` does without stored latents."""
    autoencoder = create_autoencoder(preset).eval().requires_grad_(False)
    autoencoder.to(ranks.device, **settings.layout())
    rows = pixels(preset, preset.training.batch, ranks.device)

    def encode() -> Tensor:
        with settings.autocast(ranks.device):
            return encode_moments(autoencoder, to_float(rows)).float()

    return encode


def autoencoder_stage(job: Job, settings: Settings, ranks: Ranks) -> Measured:
    """The autoencoder's step, the patch discriminator taking part.

    LPIPS has random weights, which cost what its own do and need no download.
    """
    preset, cfg = job.preset, training_of(job.preset)
    perceptual = None
    if cfg.perceptual_weight:
        perceptual = Perceptual().eval().requires_grad_(False).to(ranks.device)
    gan = AutoencoderGan(preset, settings, ranks, perceptual)
    rows = pixels(preset, cfg.batch, ranks.device)
    timed = time_all({"plain": lambda: gan.step(to_float(rows), cfg.disc_start, 0.0)}, job)
    return Measured(
        plain=timed["plain"],
        with_r1=None,
        encode=None,
        peak_memory_mib=peak_mib(job.device),
        peak_encoding_mib=None,
        threads=torch.get_num_threads(),
        gpu=gpu() if job.device == "cuda" else None,
    )


def pixels(preset: Preset, batch: int, device: torch.device) -> Tensor:
    """Random images as a pipeline delivers them, uint8 [B,3,H,W]."""
    return torch.randint(0, 256, (batch, *preset.image_shape), dtype=torch.uint8, device=device)


def time_all(runs: Mapping[str, Run], job: Job) -> dict[str, Timed]:
    """Warm each up, then run them in turns, `job.trials` times or as often as fits."""
    timer: Timer = torch_timer(job.device)
    for run in runs.values():
        for _ in range(WARM_UPS[job.device]):
            run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    budget, slowest = Budget(job.max_seconds), 0.0
    for turn in range(job.trials):
        if turn and budget.left < slowest:
            break
        started = budget.elapsed
        for name, run in runs.items():
            taken[name].append(milliseconds(run, timer))
        slowest = max(slowest, budget.elapsed - started)
    return {name: Timed(trials=len(ms), ms=summarise(ms)) for name, ms in taken.items()}


def milliseconds(run: Run, timer: Timer) -> float:
    """How long one run takes on the device."""
    start = timer.mark()
    run()
    return timer.milliseconds(start, timer.mark())


def peak_mib(device: Device) -> float | None:
    """The most memory so far: what torch allocated on the GPU, or this process's on the CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory_mib()


def main(arguments: Sequence[str]) -> int:
    """Measure the job in `arguments`; returns the exit code."""
    try:
        print(measure(Job.model_validate_json(arguments[0])).model_dump_json())
    except LddganError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
