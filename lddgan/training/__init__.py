"""Training: the autoencoder, then the diffusion GAN on its latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn

from lddgan.checkpoint import Model, build_model, save_checkpoint
from lddgan.data.images import Images
from lddgan.data.order import batches_per_epoch
from lddgan.errors import BadInput
from lddgan.noise import MAX_INDEX
from lddgan.presets import Preset
from lddgan.progress import Log
from lddgan.training.codec import codec_training, measure_scale_factor, train_autoencoder
from lddgan.training.gan import train_generator
from lddgan.training.state import seconds_in

__all__ = ["train", "train_autoencoder", "train_generator"]

MODEL_FILE = "model.safetensors"
AUTOENCODER_STATE = "autoencoder.state.pt"
GENERATOR_STATE = "generator.state.pt"


class Common(TypedDict):
    """Arguments of both stages."""

    seed: int
    resume: bool
    device: str
    log: Log | None


def train(
    preset: Preset,
    images: Images,
    *,
    seed: int,
    out: Path,
    epochs: int | None = None,
    resume: bool = False,
    device: str | None = None,
    command: Sequence[str] = (),
    log: Log | None = None,
) -> Model:
    """Train a model of `preset` on images [N,3,H,W] in [-1,1] and write it to `out`.

    `epochs` replaces the generator's; the autoencoder then gets at most as many.  `out` receives
    model.safetensors; until then it holds two training states, from which `resume` goes on.
    device None: a CUDA GPU if there is one.  `command` is recorded.  Raises BadInput for what does
    not fit together, LddganError naming the step if a loss is not finite.
    """
    if epochs is not None and epochs < 1:
        raise BadInput(f"epochs is {epochs}; at least 1 is needed")
    if not 0 <= seed <= MAX_INDEX:
        raise BadInput(f"seed is {seed}, and must be in 0..2^63-1")
    states = [out / AUTOENCODER_STATE, out / GENERATOR_STATE]
    if (out / MODEL_FILE).exists() and not any(state.exists() for state in states):
        raise BadInput(
            f"{out / MODEL_FILE} is finished: there is nothing to resume; to train anew, delete it "
            "or name another --out"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_flush_denormal(True)
    with torch.random.fork_rng():
        common = Common(seed=seed, resume=resume, device=device, log=log)
        preset, networks = _train_stages(preset, images, states, epochs, common)
    seconds = sum(seconds_in(state) for state in states)
    provenance = _provenance(preset, len(images), seed, epochs, command) | {
        "seconds": round(seconds)
    }
    generator, autoencoder = ({k: v.cpu() for k, v in n.state_dict().items()} for n in networks)
    model = build_model(preset, generator, autoencoder, provenance)
    save_checkpoint(out / MODEL_FILE, model)
    for state in states:
        state.unlink()
    return model


def _train_stages(
    preset: Preset, images: Images, states: list[Path], epochs: int | None, common: Common
) -> tuple[Preset, tuple[nn.Module, nn.Module]]:
    """(preset with the measured scale factor, (average of the generator, autoencoder))."""
    cfg = codec_training(preset)
    codec_epochs = min(cfg.epochs, epochs or cfg.epochs)
    autoencoder = train_autoencoder(preset, images, state=states[0], epochs=codec_epochs, **common)
    scale = measure_scale_factor(autoencoder, images, cfg.covered, common["device"])
    preset = preset.model_copy(update={"scale_factor": scale})
    generator = train_generator(
        preset, autoencoder, images, state=states[1], epochs=epochs, **common
    )
    return preset, (generator, autoencoder)


def _provenance(
    preset: Preset, count: int, seed: int, epochs: int | None, command: Sequence[str]
) -> dict[str, Any]:
    """Where the weights come from, for the checkpoint."""
    steps = (epochs or preset.training.epochs) * batches_per_epoch(count, preset.training.batch)
    return {
        "command": " ".join(command),
        "seed": seed,
        "images": count,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
