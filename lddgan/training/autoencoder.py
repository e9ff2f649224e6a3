"""First stage: the autoencoder, and the measured scale factor of its latents.

L1 and LPIPS, a KL or VQ regularisation or none, and from some step on a patch discriminator whose
share is weighed by gradients (VQGAN, arXiv 2012.09841; latent diffusion, arXiv 2112.10752).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lddgan.checkpoint import (
    TrainedAutoencoder,
    build_autoencoder,
    check_tensors,
    digest_of,
    save_checkpoint,
)
from lddgan.data.feed import OnBad
from lddgan.data.images import Images, read_unmirrored, to_float, to_pixels
from lddgan.errors import BadInput
from lddgan.networks.autoencoder import Autoencoder
from lddgan.networks.patch_discriminator import PatchDiscriminator
from lddgan.networks.registry import create
from lddgan.preset import AutoencoderTraining, Preset
from lddgan.training.codec_losses import (
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from lddgan.training.loop import Losses, Stage, Work, checked, refuse_infinite, run_steps
from lddgan.training.losses import widened
from lddgan.training.perceptual import load_perceptual
from lddgan.training.ranks import Ranks, joined
from lddgan.training.run_folder import AUTOENCODER_FILE, AUTOENCODER_STATE, unfinished
from lddgan.training.settings import Settings
from lddgan.training.state import Keeper, flushing_denormals, on_cpu, rate_at, seed_step, set_rate

STAGE: Final = Stage(
    0,
    "autoencoder",
    group=1,
    remedy="--set autoencoder_training.batch=N takes fewer images at once",
)
ENCODE_BATCH: Final = 64
MEASURED: Final = 10_000  # images at most that the scale factor is measured on
PATCH_LEAST: Final = 24  # side of the images that the patch discriminator can see
PERCEPTUAL_LEAST: Final = 16  # and LPIPS
PICTURES: Final = 8  # images of a grid, each above its reconstruction


class Codec:
    """The autoencoder, its patch discriminator and their optimisers: what the state holds."""

    def __init__(
        self,
        preset: Preset,
        cfg: AutoencoderTraining,
        settings: Settings,
        ranks: Ranks,
        perceptual: nn.Module | None,
    ) -> None:
        self.preset, self.cfg, self.settings, self.ranks = preset, cfg, settings, ranks
        self.perceptual = perceptual
        self.rows = settings.rows(ranks, cfg.batch, STAGE.group).to(ranks.device)
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

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load(self, state: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def step(self, image: Tensor, step: int, progress: float) -> Losses:
        """One step on this process's rows of the batch, float32 [b,3,H,W]. Raises NotFinite."""
        for optimizer in (self.adam, self.adam_critic):
            set_rate(optimizer, rate_at(progress, self.cfg.lr, self.cfg.lr_min))
        shape = (self.cfg.batch, *self.preset.latent_shape)
        noise = torch.randn(shape, device=image.device)[self.rows]
        if self.ranks.rank:  # dropout is each process's own
            seed_step(self.settings.seed, STAGE.number, step, self.ranks.rank)
        adversarial = bool(self.cfg.disc_weight) and step >= self.cfg.disc_start
        self.critic.requires_grad_(False)
        decoded, losses = codec_losses(self, image, noise, adversarial)
        values = self._descend(self.adam, self.autoencoder, losses)
        if adversarial:
            self.critic.requires_grad_(True)
            loss = {"critic": critic_loss(self, image, decoded.detach())}
            values |= self._descend(self.adam_critic, self.critic, loss)
        return values

    def _descend(
        self, optimizer: torch.optim.Optimizer, network: nn.Module, losses: dict[str, Tensor]
    ) -> Losses:
        values = checked(losses, self.ranks)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        self.ranks.average_gradients(network.parameters())
        refuse_infinite(network.parameters())
        optimizer.step()
        return values


def codec_losses(
    codec: Codec, image: Tensor, noise: Tensor, adversarial: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """(image decoded, losses whose sum the autoencoder minimises), for image [b,3,H,W]."""
    cfg = codec.cfg
    with codec.settings.autocast(image.device):
        decoded, regularisation = reconstruct(codec, image, noise)
    decoded = widened(decoded)
    losses = {"l1": (image - decoded).abs().mean()}
    if codec.perceptual is not None:
        losses["lpips"] = cfg.perceptual_weight * codec.perceptual(image, decoded).mean()
    if adversarial:
        with codec.settings.autocast(image.device):
            loss = hinge_generator_loss(widened(codec.critic(decoded)))
        nll = torch.stack(list(losses.values())).sum()
        losses["g"] = cfg.disc_weight * balance(codec, nll, loss) * loss
    return decoded, losses | regularisation


def reconstruct(codec: Codec, image: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(decoded [b,3,H,W], losses of the regularisation) of image [b,3,H,W]; noise [b,C,h,w]."""
    moments = widened(codec.autoencoder.moments(image))
    latent, losses = codec.autoencoder.regularise(moments, noise, codec.cfg)
    return codec.autoencoder.decode_regularised(latent), losses


def balance(codec: Codec, nll: Tensor, adversarial: Tensor) -> Tensor:
    """The adaptive weight of the adversarial loss: from gradients at the decoder's last layer."""
    last = codec.autoencoder.last_weight
    gradients = (
        torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (nll, adversarial)
    )
    return adaptive_weight(*(codec.ranks.mean(gradient) for gradient in gradients))


def critic_loss(codec: Codec, image: Tensor, decoded: Tensor) -> Tensor:
    """What the patch discriminator minimises."""
    with codec.settings.autocast(image.device):
        real, fake = widened(codec.critic(image)), widened(codec.critic(decoded))
    return hinge_discriminator_loss(real, fake)


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
    measured).  `vgg` is a file with LPIPS' VGG weights; without it they are downloaded, where the
    preset's perceptual_weight is not 0.  The result is written to `settings.out`; until then the
    state is kept there, from which `settings.resume` goes on.  Raises BadInput for what does not
    fit together, LddganError naming the step if a loss is not finite, Stopped.
    """
    cfg = training_of(preset)
    check_size(preset.image_size, cfg)
    unfinished(settings, AUTOENCODER_FILE, AUTOENCODER_STATE)
    with joined(settings.device) as ranks, torch.random.fork_rng(), flushing_denormals():
        total = settings.total(len(images), cfg.batch, cfg.epochs)
        if total == 0 and start is None:
            raise BadInput("no step at all makes no autoencoder; give one to begin with")
        feed = settings.feed(images, ranks, cfg.batch, STAGE.group, preset.training.flip)
        settings = settings.quiet_unless_first(ranks)  # but for what it skips
        if cfg.disc_weight and cfg.disc_start >= total > 0:
            settings.log(
                f"no patch discriminator: it takes part from step {cfg.disc_start:,} on "
                f"(autoencoder_training.disc_start), and this run has {total:,}"
            )
        origin = digest_of(start) if start else "none"
        run = settings.run(preset, images, total) | {"autoencoder to begin with": origin}
        path = settings.out / AUTOENCODER_STATE
        keeper = Keeper(path, run, resume=settings.resume, writes=ranks.is_first)
        is_judged = cfg.perceptual_weight > 0 and total > 0
        perceptual = load_perceptual(vgg, ranks.device) if is_judged else None
        seed_step(settings.seed, STAGE.number, total)  # the initial weights
        codec = Codec(preset, cfg, settings, ranks, perceptual)
        if keeper.parts is not None:
            codec.load(keeper.parts)
        elif start is not None:
            begin_with(codec.autoencoder, start)

        def step(rows: Tensor, number: int) -> Losses:
            return codec.step(to_float(rows), number, number / total)

        def picture() -> NDArray[np.uint8]:
            return reconstructions(codec.autoencoder, images, ranks.device)

        run_steps(STAGE, Work(step, codec.state, picture), feed, keeper, settings, ranks, total)
        codec.autoencoder.eval().requires_grad_(False)
        scale = measure_scale_factor(
            codec.autoencoder, images, cfg.covered, ranks.device, settings.on_bad
        )
        trained = build_autoencoder(
            preset.model_copy(update={"scale_factor": scale}),
            on_cpu(codec.autoencoder),
            settings.provenance(len(images), total, keeper.seconds) | {"begun with": origin},
        )
        if ranks.is_first:
            save_checkpoint(settings.out / AUTOENCODER_FILE, trained)
            path.unlink(missing_ok=True)
        return trained


def check_size(size: int, cfg: AutoencoderTraining) -> None:
    """Raise BadInput for images that one of the judges cannot see."""
    for name, weight, least in (
        ("disc_weight", cfg.disc_weight, PATCH_LEAST),
        ("perceptual_weight", cfg.perceptual_weight, PERCEPTUAL_LEAST),
    ):
        if weight and size < least:
            raise BadInput(
                f"images of {size}x{size} are too small for what autoencoder_training.{name} "
                f"weighs, which needs {least}x{least}; --set "
                f"autoencoder_training.{name}=0 does without"
            )


def begin_with(autoencoder: Autoencoder, start: TrainedAutoencoder) -> None:
    """Give an autoencoder the weights of another. Raises BadInput if they do not fit."""
    tensors = start.autoencoder.state_dict()
    shapes = {name: tensor.shape for name, tensor in autoencoder.state_dict().items()}
    check_tensors(tensors, shapes, "autoencoder to begin with")
    autoencoder.load_state_dict(tensors)


def training_of(preset: Preset) -> AutoencoderTraining:
    """How the preset's autoencoder is trained. Raises BadInput if it does not say."""
    if preset.autoencoder_training is None:
        raise BadInput(
            f"the preset of '{preset.name}' does not say how to train its autoencoder; import a "
            "published one"
        )
    return preset.autoencoder_training


@torch.no_grad()
def measure_scale_factor(
    autoencoder: Autoencoder, images: Images, covered: float, device: torch.device, on_bad: OnBad
) -> float:
    """The number that brings the share `covered` of the latents of the images into [-1,1].

    The wider latents are within [-1,1], the less of them the noise of the first steps hides; what
    lies outside is clamped in the generator's training.  Raises BadInput for a bad image, unless
    such are skipped.
    """
    count = min(len(images), MEASURED)
    index = [number * len(images) // count for number in range(count)]
    sizes = []
    for first in range(0, count, ENCODE_BATCH):
        read = read_unmirrored(images, index[first : first + ENCODE_BATCH])
        if read.bad and on_bad == "stop":
            raise BadInput(f"{read.bad[0]}; leave it out, or train with --on-bad skip")
        image = to_float(read.values).to(device)
        sizes.append(autoencoder.encode(image).abs().flatten().cpu())
    size = torch.cat(sizes)
    return float(size.kthvalue(math.ceil(covered * len(size))).values)


@torch.no_grad()
def reconstructions(
    autoencoder: Autoencoder, images: Images, device: torch.device
) -> NDArray[np.uint8]:
    """Some images of all and what comes out for them, in turns: [2*PICTURES,H,W,3]."""
    index = range(0, len(images), -(-len(images) // PICTURES))
    image = to_float(read_unmirrored(images, index).values).to(device)
    was_training = autoencoder.training
    decoded = autoencoder.eval().decode(autoencoder.encode(image))
    autoencoder.train(was_training)
    return to_pixels(torch.stack([image, decoded], dim=1).flatten(0, 1))
