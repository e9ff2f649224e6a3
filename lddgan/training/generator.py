"""The second stage: the denoising diffusion GAN on the autoencoder's latents.

NETWORKS.md, "Training step"; arXiv 2406.11713 section 3, arXiv 2112.07804.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lddgan.checkpoint import (
    Model,
    TrainedAutoencoder,
    build_model,
    digest_of,
    sha256_of_content,
)
from lddgan.data.images import Images, to_float, to_pixels
from lddgan.diffusion import forward_pair, posterior, posterior_sample, sample
from lddgan.errors import BadInput
from lddgan.networks.autoencoder import draw_latent
from lddgan.networks.registry import create
from lddgan.noise import draw as draw_noise
from lddgan.pictures import Pixels
from lddgan.preset import GROUP, OF_AUTOENCODER, Preset
from lddgan.training.latents import StoredLatents
from lddgan.training.loop import Losses, Stage, TensorLosses, Work, descend, train
from lddgan.training.losses import (
    discriminator_loss,
    generator_loss,
    r1_penalty,
    reconstruction_weight,
    widened,
)
from lddgan.training.ranks import Ranks
from lddgan.training.run_folder import keep_autoencoder
from lddgan.training.settings import Settings
from lddgan.training.state import COSINE, NOTHING, begin_with, on_cpu, set_rate

PICTURES: Final = 16  # images of a grid

Tensors = Mapping[str, Tensor]  # of a network, by name


class Draws(NamedTuple):
    """The randomness of one half of a step (of D or of G) on B images."""

    t: Tensor  # int64 [B], uniform in 0..T-1
    noise: Tensor  # of x_t, [B,C,h,w]
    noise_next: Tensor  # of x_{t+1}, [B,C,h,w]
    z: Tensor  # [B,nz]
    noise_posterior: Tensor  # of x_t', [B,C,h,w]


def draw(preset: Preset, batch: int, device: torch.device) -> Draws:
    """Draw for `batch` images."""
    shape = (batch, *preset.latent_shape)
    return Draws(
        torch.randint(0, preset.steps, (batch,), device=device),
        torch.randn(shape, device=device),
        torch.randn(shape, device=device),
        torch.randn(batch, preset.generator.nz, device=device),
        torch.randn(shape, device=device),
    )


class Gan:
    """Both networks, the moving average and the optimisers.

    Generator and average begin with the tensors of `start`, if given.
    """

    def __init__(
        self, preset: Preset, settings: Settings, ranks: Ranks, start: Tensors | None = None
    ) -> None:
        cfg = preset.training
        self.preset, self.cfg, self.settings, self.ranks = preset, cfg, settings, ranks
        self.rows = settings.rows(ranks, cfg.batch, GROUP).to(ranks.device)
        self.coefficients = posterior(preset)
        self.generator = create("generator", preset).to(ranks.device, **settings.layout())
        self.discriminator = create("discriminator", preset).to(ranks.device, **settings.layout())
        if start is not None:
            begin_with(self.generator, start, "generator")
        ranks.broadcast([*self.generator.parameters(), *self.discriminator.parameters()])
        average = get_ema_multi_avg_fn(cfg.ema_decay)  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(self.generator, multi_avg_fn=average).requires_grad_(False)
        if start is not None:
            self.ema.n_averaged += 1  # otherwise the first step would replace what it starts with
        self.adam_g = torch.optim.Adam(self.generator.parameters(), cfg.lr_g, cfg.betas)
        self.adam_d = torch.optim.Adam(self.discriminator.parameters(), cfg.lr_d, cfg.betas)
        compiled = torch.compile if settings.compile else (lambda network: network)
        self.run_generator = compiled(self.generator)
        self.run_discriminator = compiled(self.discriminator)

    def parts(self) -> dict[str, Any]:
        """What has a state, by name."""
        names = ("generator", "discriminator", "ema", "adam_g", "adam_d")
        return {name: getattr(self, name) for name in names}

    def step(self, moments: Tensor, step: int, progress: float) -> Losses:
        """One step of D, then one of G; returns the losses by name.

        moments [b,M,h,w] are of this process's rows of the batch.  Noise is
        drawn for the whole batch, so that any number of processes makes the same step.  Raises
        NotFinite.
        """
        set_rate(self.adam_g, progress, self.cfg.lr_g, self.cfg.lr_min)
        set_rate(self.adam_d, progress, self.cfg.lr_d, self.cfg.lr_min)
        shape = (self.cfg.batch, *self.preset.latent_shape)
        noise = torch.randn(shape, device=self.ranks.device)[self.rows]
        x_0 = (draw_latent(moments, noise) / self.preset.scale_factor).clamp(-1, 1)  # G's range
        with_r1 = step % self.cfg.r1_every == 0

        self.discriminator.requires_grad_(True)
        of_d = (discriminator_losses(self, *part, with_r1) for part in self._parts_of(x_0))
        losses = self._descend(self.adam_d, self.discriminator, of_d)
        self.discriminator.requires_grad_(False)
        of_g = (generator_losses(self, *part, progress) for part in self._parts_of(x_0))
        losses |= self._descend(self.adam_g, self.generator, of_g)
        self.ema.update_parameters(self.generator)
        return losses

    def _descend(
        self, optimizer: torch.optim.Optimizer, network: nn.Module, parts: Iterator[TensorLosses]
    ) -> Losses:
        """One step of an optimiser on the means of the losses over all parts of the batch."""
        count = self.settings.accumulate
        shares = ({name: loss / count for name, loss in losses.items()} for losses in parts)
        return descend(optimizer, network, shares, self.ranks)

    def _parts_of(self, x_0: Tensor) -> Iterator[tuple[Tensor, Draws]]:
        """This process's rows, cut into as many parts as are accumulated, with their draws."""
        parts = self.settings.accumulate
        drawn = draw(self.preset, self.cfg.batch, self.ranks.device)
        chunks = [tensor[self.rows].chunk(parts) for tensor in drawn]
        for latents, *draws in zip(x_0.chunk(parts), *chunks, strict=True):
            yield latents, Draws(*draws)


def discriminator_losses(gan: Gan, x_0: Tensor, draws: Draws, with_r1: bool) -> TensorLosses:
    """Losses whose sum D minimises: on a real and a generated x_t for the same x_{t+1}."""
    x_t, x_next = forward_pair(gan.preset, x_0, draws.t, draws.noise, draws.noise_next)
    with torch.no_grad():
        fake, _ = denoise(gan, x_next, draws)
    x_t.requires_grad_(with_r1)
    # What torch.compile makes has no gradient of a gradient.
    network = gan.discriminator if with_r1 else gan.run_discriminator
    with gan.settings.autocast(x_0.device):
        real_logit = widened(network(x_t, draws.t, x_next))
        fake_logit = widened(network(fake, draws.t, x_next))
    losses = {"d": discriminator_loss(real_logit, fake_logit)}
    if with_r1:
        losses["r1"] = r1_penalty(real_logit, x_t, gan.cfg.r1_gamma)
    return losses


def generator_losses(gan: Gan, x_0: Tensor, draws: Draws, progress: float) -> TensorLosses:
    """Losses whose sum G minimises."""
    _, x_next = forward_pair(gan.preset, x_0, draws.t, draws.noise, draws.noise_next)
    fake, predicted = denoise(gan, x_next, draws)
    with gan.settings.autocast(x_0.device):
        logit = widened(gan.run_discriminator(fake, draws.t, x_next))
    losses = {"g": generator_loss(logit)}
    if gan.cfg.reconstruction:
        weight = reconstruction_weight(progress, gan.cfg.delta)
        losses["l1"] = weight * (x_0 - predicted).abs().mean()  # equation 8
    return losses


def denoise(gan: Gan, x_next: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """(x_t', x_0') with x_0' = G(x_{t+1}, t, z) and x_t' from the posterior, each [B,C,h,w]."""
    with gan.settings.autocast(x_next.device):
        predicted = widened(gan.run_generator(x_next, draws.t, draws.z))
    noise = draws.noise_posterior
    return posterior_sample(gan.coefficients, predicted, x_next, draws.t, noise), predicted


def train_generator(
    preset: Preset,
    trained: TrainedAutoencoder,
    images: Images,
    settings: Settings,
    start: Tensors | None = None,
) -> Model:
    """Train the generator of `preset` on the latents of images; returns its average as a model.

    `images` are images, encoded as they are read, or latents encoded before (StoredLatents).  The
    autoencoder and the scale factor are those of `trained`.  The generator begins with the tensors
    of `start`, if given.  The model is written to `settings.out`, and beside it the autoencoder if
    it is learned.  Raises what `loop.train` does.
    """
    cfg = preset.training
    if start is not None and settings.resume:
        raise BadInput("--init begins a run and --resume continues one; give one of them")
    for name in OF_AUTOENCODER:
        if getattr(preset, name) != getattr(trained.preset, name):
            raise BadInput(f"{name} is the trained autoencoder's and cannot be changed here")
    if isinstance(images, StoredLatents) and cfg.flip and not images.has_mirrored:
        remedy = "encode with --flip, or train with --set training.flip=false"
        raise BadInput(f"these latents are of no mirrored images; {remedy}")

    def begin(settings: Settings, ranks: Ranks, total: int) -> Work[Model]:
        if total == 0:
            raise BadInput("no step at all makes no generator")
        if ranks.is_first and preset.autoencoder.learned:
            keep_autoencoder(settings.out, trained)
        gan = Gan(preset, settings, ranks, start)
        autoencoder = trained.autoencoder.to(ranks.device, **settings.layout())

        def step(rows: Tensor, number: int, progress: float) -> Losses:
            if not isinstance(images, StoredLatents):
                with settings.autocast(ranks.device):
                    rows = widened(autoencoder.moments(to_float(rows)))
            return gan.step(rows, number, progress)

        def result(provenance: dict[str, Any]) -> Model:
            return build_model(preset, on_cpu(gan.ema.module), on_cpu(autoencoder), provenance)

        picture = partial(grid_images, preset, gan.ema.module, trained)
        return Work(gan.parts(), step, picture, result)

    decays = cfg.lr_min is not None and {cfg.lr_g, cfg.lr_d} != {cfg.lr_min}
    schedules = {COSINE: decays, "Weighted Learning": cfg.reconstruction and cfg.delta}
    stage = Stage(
        name="generator",
        number=1,
        preset=preset,
        images=images,
        cfg=cfg,
        group=GROUP,
        origin={"autoencoder": digest_of(trained)},
        start=NOTHING if start is None else sha256_of_content({}, start),
        schedules=[name for name, changes in schedules.items() if changes],
        remedy="--accumulate 2 computes a batch in two parts, --set training.batch=N takes less",
        begin=begin,
    )
    return train(stage, settings)


@torch.no_grad()
def grid_images(preset: Preset, generator: nn.Module, trained: TrainedAutoencoder) -> Pixels:
    """The first images of seed 0 as the generator makes them now: [PICTURES,H,W,3]."""
    drawn = draw_noise(preset, 0, PICTURES, seed=0)
    device = next(generator.parameters()).device
    noise = [torch.from_numpy(part).to(device) for part in drawn]
    generator.eval()
    x_0 = sample(generator, preset, *noise)
    return to_pixels(trained.autoencoder.decode(x_0 * preset.scale_factor))
