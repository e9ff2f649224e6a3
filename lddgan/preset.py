"""A preset: everything that defines one model. How to make another one of it.

Every artefact (checkpoint, bundle, benchmark row) carries its preset as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, SerializeAsAny, ValidationError, model_validator

from lddgan.errors import BadInput, why_invalid
from lddgan.frozen import Count, Frozen, Rate, Share, Weight
from lddgan.names import Loss
from lddgan.networks.configs import AutoencoderConfig, DiscriminatorConfig, GeneratorConfig
from lddgan.networks.registry import PARTS, by_kind, values_of_kind

Beta = Annotated[float, Field(gt=0, le=100)]  # beyond, float32 keeps nothing of x_0

GROUP = 4  # images that share one minibatch deviation of the discriminator
OF_AUTOENCODER = ("autoencoder", "image_size", "latent_channels", "latent_size")


class Training(Frozen):
    """Hyper-parameters of the diffusion GAN."""

    lr_g: Rate
    lr_d: Rate
    batch: Count
    epochs: Count
    ema_decay: Share
    r1_gamma: Weight
    r1_every: Count  # lazy regularisation: R1 every so many steps
    reconstruction: bool = True  # add lambda |x_0 - x_0'|_1
    # Weighted Learning: phi runs from -delta to +delta (equation 9); None: lambda stays 1
    delta: Weight | None = 6.0
    flip: bool = True  # half of the images are mirrored
    betas: tuple[Share, Share] = (0.5, 0.9)  # Adam
    lr_min: Weight | None = None  # None: constant rates; else cosine decay down to this


class AutoencoderTraining(Frozen):
    """Hyper-parameters of the autoencoder (VQGAN, arXiv 2012.09841, with latent diffusion's)."""

    lr: Rate
    batch: Count
    epochs: Count
    betas: tuple[Share, Share] = (0.9, 0.999)  # Adam
    lr_min: Weight | None = None  # None: constant rate; else cosine decay down to this
    kl_weight: Weight = 1e-6
    perceptual_weight: Weight = 1.0  # of LPIPS, beside L1
    disc_weight: Weight = 0.5  # of the patch discriminator, on top of the adaptive weight
    disc_start: NonNegativeInt = 50_000  # step from which it takes part
    commitment: Weight = 0.25  # beta of VQ-VAE
    # share of the latents that the scale factor brings into [-1,1]
    covered: Annotated[float, Field(gt=0, le=1)] = 1.0


class Paper(Frozen):
    """What the paper reports for this data set."""

    source: str
    fid: float | None = None
    recall: float | None = None
    seconds: float  # for a batch of 100
    parameters: float | None = None  # in millions (Tables 2 and 11)
    # between the released code, which this preset follows, and the paper
    differences: str = "sizes and recipe as released"


class Preset(Frozen):
    """Everything that defines one model; `kind`s of networks are in lddgan/networks/registry.py."""

    name: str
    image_size: Count
    latent_channels: Count
    latent_size: Count
    scale_factor: Rate  # decoder input = x_0 * scale_factor; encoder output / scale_factor = x_0
    steps: int  # T
    generator: Annotated[SerializeAsAny[GeneratorConfig], by_kind("generator")]
    autoencoder: Annotated[SerializeAsAny[AutoencoderConfig], by_kind("autoencoder")]
    discriminator: Annotated[SerializeAsAny[DiscriminatorConfig], by_kind("discriminator")]
    training: Training
    autoencoder_training: AutoencoderTraining | None = None
    paper: Paper | None = None
    beta_min: Beta = 0.1
    beta_max: Beta = 20.0

    @model_validator(mode="before")
    @classmethod
    def _accept_former_names(cls, values: Any) -> Any:
        """Reads presets of before 0.2: a codec, no flips, a generator of no kind, 0 codes."""
        if not isinstance(values, dict):
            return values
        no_flips = {"flip": False} if "codec" in values else {}
        values = {name.replace("codec", "autoencoder"): value for name, value in values.items()}
        generator, autoencoder = values.get("generator"), values.get("autoencoder")
        if isinstance(generator, dict):
            values["generator"] = {"kind": "ncsnpp", **generator}
        if isinstance(values.get("training"), dict):
            values["training"] = no_flips | values["training"]
        if isinstance(autoencoder, dict) and autoencoder.get("kind") in ("kl", "none"):
            values["autoencoder"] = {k: v for k, v in autoencoder.items() if (k, v) != ("codes", 0)}
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Preset:
        factor, kind = self.autoencoder.factor, self.autoencoder.kind
        if self.image_size % factor:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of {factor}, by which the kind "
                f"'{kind}' divides it"
            )
        if self.latent_size * factor != self.image_size:
            raise ValueError(
                f"latent_size {self.latent_size} is not image_size {self.image_size} / {factor}"
            )
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min {self.beta_min} is above beta_max {self.beta_max}")
        if not 2 <= self.steps <= 8:
            raise ValueError(f"steps {self.steps} is outside 2..8")
        channels = self.autoencoder.latent_channels
        if channels not in (None, self.latent_channels):
            raise ValueError(
                f"latent_channels {self.latent_channels} is not {channels}, as a latent of the "
                f"kind '{kind}' has"
            )
        least = 1 << max(self.generator.halvings, self.discriminator.halvings)
        if self.latent_size % least:
            raise ValueError(
                f"latent_size {self.latent_size} is no multiple of {least}, as the networks need; "
                f"choose an image_size that {least * factor} divides, or fewer "
                "levels of generator and discriminator"
            )
        for cfg in (self.training, self.autoencoder_training):
            if cfg is not None and cfg.batch % min(cfg.batch, GROUP):
                raise ValueError(f"a batch of {cfg.batch} is no multiple of {GROUP}")
        return self

    @property
    def largest_activation(self) -> int:
        """Elements of the largest activation of both graphs for one image."""
        return max(
            self.generator.largest_activation(self.latent_size),
            self.autoencoder.largest_activation(self.image_size),
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[C, h, w] of x_t."""
        return (self.latent_channels, self.latent_size, self.latent_size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, self.image_size, self.image_size)

    @property
    def moments_shape(self) -> tuple[int, int, int]:
        """[M, h, w] of what a latent is drawn from."""
        return (self.autoencoder.moments(self.latent_channels), *self.latent_shape[1:])

    @property
    def loss(self) -> Loss:
        """The loss of the generator (Table 6)."""
        if not self.training.reconstruction:
            return "adversarial"
        return "reconstruction" if self.training.delta is None else "weighted"


# ---- presets of one's own ----


def with_values(preset: Preset, changes: Mapping[str, Any]) -> Preset:
    """`preset` with other values, e.g. "generator.nf"; a new "autoencoder.kind" keeps shared ones.

    Raises BadInput for an unknown name, or for values that do not fit together.
    """
    values = preset.model_dump()
    for part in PARTS:
        if f"{part}.kind" in changes:
            values[part] = values_of_kind(part, values[part], changes[f"{part}.kind"])
    known = names(values)
    for name, value in changes.items():
        if name not in known:
            raise BadInput(f"there is no setting '{name}'; there are {', '.join(known)}")
        section, _, leaf = name.rpartition(".")
        (values[section] if section else values)[leaf] = value
    try:
        changed = Preset.model_validate(values)
    except ValidationError as error:
        raise BadInput(why_invalid(error, preset.name)) from error
    if changed.autoencoder.learned != preset.autoencoder.learned:
        raise BadInput(
            f"autoencoder.kind cannot be {changed.autoencoder.kind} in {preset.name}: start from a "
            f"model that is {'trained with' if changed.autoencoder.learned else 'without'} an "
            "autoencoder (`lddgan presets`)"
        )
    for part, side in (("generator", changed.latent_size), ("autoencoder", changed.image_size)):
        asked = changes.get(f"{part}.attention")
        if asked is None:
            continue
        sides = getattr(changed, part).resolutions(side)  # who attends has them
        if not set(asked) <= set(sides):
            there = ", ".join(map(str, sides))
            raise BadInput(f"{part}.attention is {list(asked)}, but the resolutions are {there}")
    return changed


def differences(before: Preset, after: Preset) -> dict[str, Any]:
    """The values of `after` that `before` has not, by name."""
    values = flat(before.model_dump())
    return {k: v for k, v in flat(after.model_dump()).items() if v != values.get(k, "absent")}


def names(values: Mapping[str, Any]) -> list[str]:
    """Names of the values of a dumped preset that can be set."""
    return [name for name in flat(values) if name != "name" and not name.startswith("paper")]


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a dumped preset by name: {"generator": {"nf": 32}} -> {"generator.nf": 32}."""
    leaves: dict[str, Any] = {}
    for section, value in values.items():
        if isinstance(value, dict):
            leaves |= {f"{section}.{leaf}": inner for leaf, inner in value.items()}
        else:
            leaves[section] = value
    return leaves


def parsed(settings: Sequence[str]) -> dict[str, Any]:
    """["generator.nf=32"] -> {"generator.nf": 32}; values are JSON, or else text."""
    changes = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise BadInput(f"'{setting}' is no setting; write generator.nf=32")
        try:
            changes[name] = json.loads(text)
        except json.JSONDecodeError:
            changes[name] = text
    return changes


def resized(preset: Preset, image_size: int | None, changes: Mapping[str, Any] = {}) -> Preset:
    """`preset` with `changes`, for images of another size (None: its own). Raises BadInput."""
    if image_size is not None:
        latent_size = image_size // preset.autoencoder.factor
        changes = {"image_size": image_size, "latent_size": latent_size, **changes}
    return with_values(preset, changes)


def check_learned(preset: Preset, remedy: str) -> None:
    """Raise BadInput, naming a remedy, if the autoencoder of `preset` is not learned."""
    if not preset.autoencoder.learned:
        why = f"its latents are of the kind '{preset.autoencoder.kind}', which has no weights"
        raise BadInput(f"{preset.name} takes no autoencoder: {why}; {remedy}")


def with_loss(preset: Preset, loss: Loss, delta: float | None) -> Preset:
    """`preset` with another loss of the generator. Raises BadInput if `delta` does not fit it."""
    if delta is not None and loss != "weighted":
        raise BadInput(f"delta belongs to the loss 'weighted', not to '{loss}'")
    own = preset.training.delta if delta is None else delta
    if loss == "weighted" and own is None:
        raise BadInput(f"the loss 'weighted' needs --delta: {preset.name} has none of its own")
    delta = own if loss == "weighted" else None
    changes = {"training.reconstruction": loss != "adversarial", "training.delta": delta}
    return with_values(preset, changes)
