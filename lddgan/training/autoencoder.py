"""The first stage: the autoencoder, and the measured scale factor of its latents.

L1 and LPIPS, a KL or VQ regularisation or none, and from some step on a patch discriminator whose
share is weighed by gradients (VQGAN, arXiv 2012.09841; latent diffusion, arXiv 2112.10752).
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from lddgan.checkpoint import TrainedAutoencoder, build_autoencoder, digest_of
from lddgan.data.images import Images, OnBad, read_unmirrored, refuse_bad, to_float, to_pixels
from lddgan.errors import BadInput
from lddgan.networks.autoencoder import Autoencoder
from lddgan.networks.patch_discriminator import PatchDiscriminator
from lddgan.networks.registry import create
from lddgan.pictures import Pixels
from lddgan.preset import AutoencoderTraining, Preset, check_learned
from lddgan.training.loop import Losses, Stage, TensorLosses, Work, descend, train
from lddgan.training.losses import adaptive_weight, hinge_discriminator_loss, widened
from lddgan.training.perceptual import load_perceptual
from lddgan.training.ranks import Ranks
from lddgan.training.settings import Settings
from lddgan.training.state import COSINE, NOTHING, begin_with, on_cpu, seed_step, set_rate

NUMBER: Final = 0  # of the stage's seeds
GROUP: Final = 1  # images of a batch that cannot be parted
ENCODE_BATCH: Final = 64
MEASURED: Final = 10_000  # images at most that the scale factor is measured on
PICTURES: Final = 8  # images of a grid, each above its reconstruction


class AutoencoderGan:
    """The autoencoder, its patch discriminator (the critic) and their optimisers."""

    def __init__(
        self, preset: Preset, settings: Settings, ranks: Ranks, perceptual: nn.Module | None = None
    ) -> None:
        self.cfg = cfg = training_of(preset)
        self.preset, self.settings, self.ranks = preset, settings, ranks
        self.perceptual = perceptual  # LPIPS; None without a perceptual loss
        self.rows = settings.rows(ranks, cfg.batch, GROUP).to(ranks.device)
        self.autoencoder: Autoencoder = create("autoencoder", preset)
        self.autoencoder.to(ranks.device, **settings.layout())
        self.critic = PatchDiscriminator().to(ranks.device, **settings.layout())
        ranks.broadcast([*self.autoencoder.parameters(), *self.critic.parameters()])
        self.adam = torch.optim.Adam(self.autoencoder.parameters(), cfg.lr, cfg.betas)
        self.adam_critic = torch.optim.Adam(self.critic.parameters(), cfg.lr, cfg.betas)

    def parts(self) -> dict[str, Any]:
        """What has a state, by name."""
        parts = {"autoencoder": self.autoencoder, "adam": self.adam}
        if self.cfg.disc_weight:
            parts |= {"critic": self.critic, "adam_critic": self.adam_critic}
        return parts

    def step(self, image: Tensor, step: int, progress: float) -> Losses:
        """One step on this process's rows of the batch, float32 [b,3,H,W]. Raises NotFinite."""
        for optimizer in (self.adam, self.adam_critic):
            set_rate(optimizer, progress, self.cfg.lr, self.cfg.lr_min)
        shape = (self.cfg.batch, *self.preset.latent_shape)
        noise = torch.randn(shape, device=image.device)[self.rows]
        if self.ranks.rank:  # dropout is each process's own
            seed_step(self.settings.seed, NUMBER, step, self.ranks.rank)
        adversarial = bool(self.cfg.disc_weight) and step >= self.cfg.disc_start
        self.critic.requires_grad_(False)
        decoded, losses = autoencoder_losses(self, image, noise, adversarial)
        values = descend(self.adam, self.autoencoder, [losses], self.ranks)
        if adversarial:
            self.critic.requires_grad_(True)
            with self.settings.autocast(image.device):
                real, fake = (widened(self.critic(of)) for of in (image, decoded.detach()))
            loss = {"critic": hinge_discriminator_loss(real, fake)}
            values |= descend(self.adam_critic, self.critic, [loss], self.ranks)
        return values


def autoencoder_losses(
    gan: AutoencoderGan, image: Tensor, noise: Tensor, adversarial: bool
) -> tuple[Tensor, TensorLosses]:
    """(image decoded, losses whose sum the autoencoder minimises), for image [b,3,H,W]."""
    cfg = gan.cfg
    with gan.settings.autocast(image.device):
        moments = widened(gan.autoencoder.moments(image))
        latent, regularisation = gan.autoencoder.regularise(moments, noise, cfg)
        decoded = gan.autoencoder.decode_regularised(latent)
    decoded = widened(decoded)
    losses = {"l1": (image - decoded).abs().mean()}
    if gan.perceptual is not None:
        losses["lpips"] = cfg.perceptual_weight * gan.perceptual(image, decoded).mean()
    if adversarial:
        with gan.settings.autocast(image.device):
            loss = -widened(gan.critic(decoded)).mean()
        nll, last = torch.stack(list(losses.values())).sum(), gan.autoencoder.last_weight
        gradients = (torch.autograd.grad(v, last, retain_graph=True)[0] for v in (nll, loss))
        weight = adaptive_weight(*map(gan.ranks.mean, gradients))
        losses["g"] = cfg.disc_weight * weight * loss
    return decoded, losses | regularisation


def train_autoencoder(
    preset: Preset,
    images: Images,
    settings: Settings,
    *,
    start: TrainedAutoencoder | None = None,
    vgg: Path | None = None,
) -> TrainedAutoencoder:
    """Train the autoencoder of `preset` on images and measure the scale factor of its latents.

    It begins with the weights of `start`, if given (and with no steps only the scale factor is
    measured).  `vgg` is for `load_perceptual`.  The result is written to `settings.out`.  Raises
    what `loop.train` does.
    """
    cfg = training_of(preset)
    check_size(preset.image_size, cfg)

    def begin(settings: Settings, ranks: Ranks, total: int) -> Work[TrainedAutoencoder]:
        if total == 0 and start is None:
            raise BadInput("no step at all makes no autoencoder; give one to begin with")
        if cfg.disc_weight and cfg.disc_start >= total > 0:
            settings.log(
                f"no patch discriminator: it takes part from step {cfg.disc_start:,} on "
                f"(autoencoder_training.disc_start), and this run has {total:,}"
            )
        gan = AutoencoderGan(preset, settings, ranks)
        if start is not None:
            begin_with(gan.autoencoder, start.autoencoder.state_dict(), "autoencoder")
        if cfg.perceptual_weight and total:
            gan.perceptual = load_perceptual(vgg, ranks.device)
        return work_on(gan, images)

    stage = Stage(
        name="autoencoder",
        number=NUMBER,
        preset=preset,
        images=images,
        cfg=cfg,
        group=GROUP,
        origin={},
        start=digest_of(start) if start else NOTHING,
        schedules=[COSINE] if cfg.lr_min not in (None, cfg.lr) else [],
        remedy="--set autoencoder_training.batch=N takes fewer images at once",
        begin=begin,
    )
    return train(stage, settings)


def work_on(gan: AutoencoderGan, images: Images) -> Work[TrainedAutoencoder]:
    """What the loop does with rows of `images`."""
    autoencoder, device = gan.autoencoder, gan.ranks.device

    def step(rows: Tensor, number: int, progress: float) -> Losses:
        return gan.step(to_float(rows), number, progress)

    def result(provenance: dict[str, Any]) -> TrainedAutoencoder:
        was_training = autoencoder.training
        covered, on_bad = gan.cfg.covered, gan.settings.on_bad
        scale = measure_scale_factor(autoencoder.eval(), images, covered, device, on_bad)
        autoencoder.train(was_training)
        preset = gan.preset.model_copy(update={"scale_factor": scale})
        return build_autoencoder(preset, on_cpu(autoencoder), provenance)

    picture = partial(reconstructions, autoencoder, images, device)
    return Work(gan.parts(), step, picture, result)


def check_size(size: int, cfg: AutoencoderTraining) -> None:
    """Raise BadInput for images that one of the judges cannot see."""
    for name, least in (("disc_weight", 24), ("perceptual_weight", 16)):  # pixels a side
        if getattr(cfg, name) and size < least:
            raise BadInput(
                f"images of {size}x{size} are too small: autoencoder_training.{name} needs "
                f"{least}x{least}; --set autoencoder_training.{name}=0 does without"
            )


def training_of(preset: Preset) -> AutoencoderTraining:
    """How the preset's autoencoder is trained. Raises BadInput if it does not say."""
    check_learned(preset, "train its generator at once")
    if preset.autoencoder_training is None:
        raise BadInput(
            f"the preset of '{preset.name}' does not say how to train its autoencoder; import one"
        )
    return preset.autoencoder_training


@torch.no_grad()
def measure_scale_factor(
    autoencoder: Autoencoder, images: Images, covered: float, device: torch.device, on_bad: OnBad
) -> float:
    """The number that brings the share `covered` of the latents of the images into [-1,1].

    The generator's training clamps the rest.  Raises BadInput for a bad image, unless such are
    skipped.
    """
    count = min(len(images), MEASURED)
    index = [number * len(images) // count for number in range(count)]
    sizes = []
    for first in range(0, count, ENCODE_BATCH):
        read = read_unmirrored(images, index[first : first + ENCODE_BATCH])
        refuse_bad(read.bad, on_bad)
        image = to_float(read.values).to(device)
        sizes.append(autoencoder.encode(image).abs().flatten().cpu())
    size = torch.cat(sizes)
    return float(size.kthvalue(math.ceil(covered * len(size))).values)


@torch.no_grad()
def reconstructions(autoencoder: Autoencoder, images: Images, device: torch.device) -> Pixels:
    """Some images of all, each before what comes out for it: [2*PICTURES,H,W,3]."""
    index = range(0, len(images), -(-len(images) // PICTURES))
    image = to_float(read_unmirrored(images, index).values).to(device)
    was_training = autoencoder.training
    decoded = autoencoder.eval().decode(autoencoder.encode(image))
    autoencoder.train(was_training)
    return to_pixels(torch.stack([image, decoded], dim=1).flatten(0, 1))
