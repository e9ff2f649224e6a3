"""First stage: the autoencoder, and the measured scale factor of its latents."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lddgan.data.images import Images
from lddgan.data.order import batches_per_epoch
from lddgan.errors import BadInput
from lddgan.networks.autoencoder import Autoencoder
from lddgan.presets import CodecTraining, Preset
from lddgan.progress import Log
from lddgan.training.loop import run_steps
from lddgan.training.losses import autoencoder_loss
from lddgan.training.state import Keeper, check_finite, rate_at, seed_step, set_rate

STAGE = 0  # of the seeds
NAME = "autoencoder"
LEAST_RATE = 0.01  # the cosine ends at this share of the rate
ENCODE_BATCH = 256
MEASURED = 10_000  # images at most that the scale factor is measured on


def codec_training(preset: Preset) -> CodecTraining:
    """How the preset's autoencoder is trained. Raises BadInput if this code cannot."""
    if preset.codec_training is None or preset.codec.kind != "kl":
        raise BadInput(
            f"the autoencoder of '{preset.name}' cannot be trained here; import a published one"
        )
    return preset.codec_training


def train_autoencoder(
    preset: Preset,
    images: Images,
    *,
    seed: int,
    state: Path,
    epochs: int | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
    log: Log | None = None,
) -> Autoencoder:
    """Train the KL autoencoder of `preset` on images [N,3,H,W] in [-1,1].

    Its state is kept in the file `state`; with `resume` it goes on from there (a finished one is
    only read).  Raises BadInput for a preset, a state or images that do not fit, LddganError
    naming the step if a loss is not finite.
    """
    cfg = codec_training(preset)
    total = (epochs or cfg.epochs) * batches_per_epoch(len(images), cfg.batch)
    run = f"{NAME} {preset.model_dump_json()} seed {seed} images {len(images)} steps {total}"
    keeper = Keeper(state, run, resume)
    seed_step(seed, STAGE, total)  # the initial weights
    autoencoder = Autoencoder(preset).to(device)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=cfg.lr)
    if keeper.parts is not None:
        autoencoder.load_state_dict(keeper.parts["autoencoder"])
        optimizer.load_state_dict(keeper.parts["optimizer"])

    def parts() -> dict[str, Any]:
        return {"autoencoder": autoencoder.state_dict(), "optimizer": optimizer.state_dict()}

    def step(index: Tensor, number: int) -> dict[str, float]:
        set_rate(optimizer, rate_at(number / total, cfg.lr, LEAST_RATE * cfg.lr))
        return codec_step(autoencoder, optimizer, images[index].to(device), cfg, number)

    shape = {"count": len(images), "batch": cfg.batch, "total": total}
    run_steps(NAME, STAGE, step, parts, keeper, seed=seed, log=log, **shape)
    return autoencoder.eval().requires_grad_(False)


def codec_step(
    autoencoder: Autoencoder,
    optimizer: torch.optim.Optimizer,
    image: Tensor,
    cfg: CodecTraining,
    step: int,
) -> dict[str, float]:
    """One step on image [B,3,H,W]; returns the losses by name."""
    mean, logvar = autoencoder.moments(image)
    decoded = autoencoder.decode(posterior_draw(mean, logvar))
    l1, kl = autoencoder_loss(image, decoded, mean, logvar, cfg.kl_weight)
    values = check_finite({"l1": l1, "kl": kl}, NAME, step)
    optimizer.zero_grad(set_to_none=True)
    (l1 + kl).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return values


def posterior_draw(mean: Tensor, logvar: Tensor) -> Tensor:
    """A sample of N(mean, exp logvar), the KL autoencoder's posterior: [B,C,h,w]."""
    return mean + (0.5 * logvar).exp() * torch.randn_like(mean)


@torch.no_grad()
def encode_moments(autoencoder: Autoencoder, image: Tensor) -> Tensor:
    """Image [B,3,H,W] -> mean and log-variance [B,2C,h,w]; VQ: the latent [B,C,h,w]."""
    if autoencoder.is_kl:
        return torch.cat(autoencoder.moments(image), dim=1)
    return autoencoder.encode(image)


def draw_latent(moments: Tensor, is_kl: bool) -> Tensor:
    """What `encode_moments` gave -> a latent [B,C,h,w]: KL a sample, VQ as it is."""
    return posterior_draw(*moments.chunk(2, dim=1)) if is_kl else moments


@torch.no_grad()
def measure_scale_factor(
    autoencoder: Autoencoder,
    images: Images,
    covered: float,
    device: torch.device | str = "cpu",
) -> float:
    """The number that brings the share `covered` of the latents of the first images into [-1,1].

    The wider latents are within [-1,1], the less of them the noise of the first steps hides; what
    lies outside is clamped by `Latents`.
    """
    count = min(len(images), MEASURED)
    sizes = []
    for start in range(0, count, ENCODE_BATCH):
        index = torch.arange(start, min(start + ENCODE_BATCH, count))
        sizes.append(autoencoder.encode(images[index].to(device)).abs().flatten())
    size = torch.cat(sizes)
    return float(size.kthvalue(math.ceil(covered * len(size))).values)
