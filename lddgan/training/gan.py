"""Second stage: the denoising diffusion GAN on the autoencoder's latents.

NETWORKS.md, "Training step"; arXiv 2406.11713 section 3, arXiv 2112.07804.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lddgan.data.images import Images
from lddgan.data.order import batches_per_epoch
from lddgan.diffusion import forward_pair, posterior, posterior_sample
from lddgan.networks.autoencoder import Autoencoder
from lddgan.networks.discriminator import Discriminator
from lddgan.networks.generator import Generator
from lddgan.presets import Preset
from lddgan.progress import Log
from lddgan.training.codec import ENCODE_BATCH, draw_latent, encode_moments
from lddgan.training.loop import run_steps
from lddgan.training.losses import (
    discriminator_loss,
    generator_loss,
    r1_penalty,
    reconstruction_loss,
    reconstruction_weight,
)
from lddgan.training.state import Keeper, check_finite, rate_at, seed_step, set_rate

STAGE = 1  # of the seeds
NAME = "generator"


class Gan:
    """Both networks, the moving average and the optimisers: what the training state holds."""

    def __init__(self, preset: Preset, device: torch.device | str) -> None:
        cfg = preset.training
        self.preset, self.cfg = preset, cfg
        self.coefficients = posterior(preset)
        self.generator = Generator(preset).to(device)
        self.discriminator = Discriminator(preset).to(device)
        average = get_ema_multi_avg_fn(cfg.ema_decay)  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(self.generator, multi_avg_fn=average).requires_grad_(False)
        self.adam_g = torch.optim.Adam(self.generator.parameters(), cfg.lr_g, cfg.betas)
        self.adam_d = torch.optim.Adam(self.discriminator.parameters(), cfg.lr_d, cfg.betas)

    def parts(self) -> dict[str, Any]:
        """What has a state, by name."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "ema": self.ema,
            "adam_g": self.adam_g,
            "adam_d": self.adam_d,
        }

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load(self, state: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def step(self, x_0: Tensor, step: int, progress: float) -> dict[str, float]:
        """One step of D, then one of G, on latents x_0 [B,C,h,w]; returns the losses by name."""
        set_rate(self.adam_g, rate_at(progress, self.cfg.lr_g, self.cfg.lr_min))
        set_rate(self.adam_d, rate_at(progress, self.cfg.lr_d, self.cfg.lr_min))
        self.discriminator.requires_grad_(True)
        d_losses = discriminator_losses(self, x_0, with_r1=step % self.cfg.r1_every == 0)
        values = check_finite(d_losses, NAME, step)
        _descend(self.adam_d, d_losses)

        self.discriminator.requires_grad_(False)
        g_losses = generator_losses(self, x_0, progress)
        values |= check_finite(g_losses, NAME, step)
        _descend(self.adam_g, g_losses)
        self.ema.update_parameters(self.generator)
        return values


def discriminator_losses(gan: Gan, x_0: Tensor, with_r1: bool) -> dict[str, Tensor]:
    """Losses whose sum D minimises: on a real and a generated x_t for the same x_{t+1}."""
    t, x_t, x_next = draw_pair(gan.preset, x_0)
    with torch.no_grad():
        fake, _ = denoise(gan, x_next, t)
    x_t.requires_grad_(with_r1)
    real_logit = gan.discriminator(x_t, t, x_next)
    fake_logit = gan.discriminator(fake, t, x_next)
    losses = {"d": discriminator_loss(real_logit, fake_logit)}
    if with_r1:
        losses["r1"] = r1_penalty(real_logit, x_t, gan.cfg.r1_gamma)
    return losses


def generator_losses(gan: Gan, x_0: Tensor, progress: float) -> dict[str, Tensor]:
    """Losses whose sum G minimises, on a fresh t, pair and z."""
    t, _, x_next = draw_pair(gan.preset, x_0)
    fake, predicted = denoise(gan, x_next, t)
    losses = {"g": generator_loss(gan.discriminator(fake, t, x_next))}
    if gan.cfg.reconstruction:
        weight = reconstruction_weight(progress, gan.cfg.delta)
        losses["l1"] = weight * reconstruction_loss(x_0, predicted)
    return losses


def draw_pair(preset: Preset, x_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(t, x_t, x_{t+1}) with t uniform in 0..T-1 per image: int64 [B] and twice [B,C,h,w]."""
    t = torch.randint(0, preset.steps, (len(x_0),), device=x_0.device)
    x_t, x_next = forward_pair(preset, x_0, t, torch.randn_like(x_0), torch.randn_like(x_0))
    return t, x_t, x_next


def denoise(gan: Gan, x_next: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(x_t', x_0') with x_0' = G(x_{t+1}, t, z) and x_t' from the posterior, each [B,C,h,w]."""
    z = torch.randn(len(x_next), gan.preset.generator.nz, device=x_next.device)
    predicted = gan.generator(x_next, t, z)
    noise = torch.randn_like(x_next)
    return posterior_sample(gan.coefficients, predicted, x_next, t, noise), predicted


def _descend(optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
    optimizer.zero_grad(set_to_none=True)
    total = torch.stack(list(losses.values())).sum()
    total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


class Latents:
    """Latents x_0 of `images`, drawn anew at each call; moments of a tensor are computed once."""

    def __init__(
        self,
        preset: Preset,
        autoencoder: Autoencoder,
        images: Images,
        device: torch.device | str,
    ) -> None:
        self.scale, self.autoencoder = preset.scale_factor, autoencoder
        self.images, self.device = images, device
        self.moments: Tensor | None = None
        if isinstance(images, Tensor):
            chunks = (c.to(device) for c in torch.split(images, ENCODE_BATCH))
            self.moments = torch.cat([encode_moments(autoencoder, c) for c in chunks])

    def draw(self, index: Tensor) -> Tensor:
        """Indices int64 [B] -> x_0 [B,C,h,w], divided by the scale factor and clamped to [-1,1]."""
        if self.moments is not None:
            moments = self.moments[index.to(self.moments.device)]
        else:
            moments = encode_moments(self.autoencoder, self.images[index].to(self.device))
        latent = draw_latent(moments, self.autoencoder.is_kl)
        return (latent / self.scale).clamp(-1, 1)  # the range of G


def train_generator(
    preset: Preset,
    autoencoder: Autoencoder,
    images: Images,
    *,
    seed: int,
    state: Path,
    epochs: int | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
    log: Log | None = None,
) -> nn.Module:
    """Train the generator of `preset` on the latents of images [N,3,H,W]; returns its average.

    `preset.scale_factor` must be the one of `autoencoder`.  The state is kept in the file `state`;
    with `resume` training goes on from there.  Raises BadInput for a state or images that do not
    fit, LddganError naming the step if a loss is not finite.
    """
    cfg = preset.training
    total = (epochs or cfg.epochs) * batches_per_epoch(len(images), cfg.batch)
    run = f"{NAME} {preset.model_dump_json()} seed {seed} images {len(images)} steps {total}"
    keeper = Keeper(state, run, resume)
    seed_step(seed, STAGE, total)  # the initial weights
    gan = Gan(preset, device)
    if keeper.parts is not None:
        gan.load(keeper.parts)
    latents = Latents(preset, autoencoder, images, device)

    def step(index: Tensor, number: int) -> dict[str, float]:
        return gan.step(latents.draw(index), number, number / total)

    shape = {"count": len(images), "batch": cfg.batch, "total": total}
    run_steps(NAME, STAGE, step, gan.state, keeper, seed=seed, log=log, **shape)
    return gan.ema.module.eval()
