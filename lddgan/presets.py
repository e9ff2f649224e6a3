"""One frozen literal per data set. Nothing else holds a shape or a hyper-parameter.

Sources: the released LDDGAN code for shapes and schedules, arXiv 2406.11713 for figures.  Every
artefact (checkpoint, bundle, benchmark row) carries its preset as JSON.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    model_validator,
)

from lddgan.errors import BadInput

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(gt=0, le=100)]  # beyond, float32 keeps nothing of x_0
Share = Annotated[float, Field(ge=0, lt=1)]
Widths = Annotated[tuple[Count, ...], Field(min_length=1)]

GROUP = 4  # images that share one minibatch deviation of the discriminator
AUTOENCODER_GROUPS = 32  # of the autoencoder's group normalisation
GENERATOR_GROUPS = 32  # of the generator's, at most


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Generator(Frozen):
    """NCSN++ with adaptive group normalisation from z."""

    nf: Count  # width of the first level
    ch_mult: Widths  # width of each level / nf
    blocks: Count  # residual blocks per level on the way down; one more on the way up
    attention: tuple[int, ...]  # resolutions with self-attention, besides the middle
    nz: Count  # length of the latent z
    mapping_layers: NonNegativeInt  # layers of the mapping network after the first
    z_emb_dim: Count  # width of the mapping network


class AutoencoderConfig(Frozen):
    """Convolutional autoencoder of VQGAN / latent diffusion."""

    kind: Literal["kl", "vq", "none"]  # of regularisation; none: the KL network, its mean as latent
    ch: Count
    ch_mult: Widths
    blocks: Count
    attention: tuple[int, ...]  # resolutions with self-attention, besides the middle
    tanh: bool = False  # the decoder ends in tanh
    dropout: Share = 0.0  # training only
    codes: NonNegativeInt = 0  # size of the codebook (VQ)


class Discriminator(Frozen):
    """Time-conditional discriminator D(x_t, t, x_{t+1})."""

    kind: Literal["small", "large"]
    ngf: Count
    layers: Annotated[int, Field(ge=1, le=4)]  # residual blocks
    t_emb_dim: Annotated[int, Field(ge=4, multiple_of=2)] = 256

    @property
    def halvings(self) -> int:
        """How often it halves the resolution: the first block of a small one does not."""
        return self.layers - (self.kind == "small")


class Training(Frozen):
    """Hyper-parameters of the diffusion GAN."""

    lr_g: Rate
    lr_d: Rate
    batch: Count
    epochs: Count
    ema_decay: Share
    r1_gamma: Weight
    r1_every: Count  # lazy regularisation: R1 every so many steps
    reconstruction: bool  # add lambda |x_0 - x_0'|_1
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
    fid: float
    recall: float
    seconds: float  # for a batch of 100
    differences: str  # between the released code, which this preset follows, and the paper


class Preset(Frozen):
    """Everything that defines one model.

    `latent_shape` is [C, h, w] of x_t, `image_shape` is [3, H, W].
    """

    name: str
    image_size: Count
    latent_channels: Count
    latent_size: Count
    scale_factor: Rate  # decoder input = x_0 * scale_factor; encoder output / scale_factor = x_0
    steps: int  # T
    generator: Generator
    autoencoder: AutoencoderConfig
    discriminator: Discriminator
    training: Training
    autoencoder_training: AutoencoderTraining | None = None
    paper: Paper | None = None
    beta_min: Beta = 0.1
    beta_max: Beta = 20.0

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, values: Any) -> Any:
        """Checkpoints and bundles written before version 0.2 call the autoencoder a codec."""
        if not isinstance(values, dict):
            return values
        return {name.replace("codec", "autoencoder"): value for name, value in values.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Preset:
        if self.latent_size * self.downsampling != self.image_size:
            raise ValueError(
                f"image_size {self.image_size} is not latent_size {self.latent_size} x "
                f"{self.downsampling} (the autoencoder's factor)"
            )
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min {self.beta_min} is above beta_max {self.beta_max}")
        if not 2 <= self.steps <= 8:
            raise ValueError(f"steps {self.steps} is outside 2..8")
        if self.autoencoder.kind == "vq" and self.autoencoder.codes < 1:
            raise ValueError("a VQ autoencoder needs codes >= 1")
        least = max(1 << (len(self.generator.ch_mult) - 1), 1 << self.discriminator.halvings)
        if self.latent_size % least:
            raise ValueError(
                f"latent_size {self.latent_size} is no multiple of {least}: generator or "
                "discriminator halve it too often"
            )
        check_widths(self.generator, self.autoencoder)
        for cfg in (self.training, self.autoencoder_training):
            if cfg is not None and cfg.batch % min(cfg.batch, GROUP):
                raise ValueError(f"a batch of {cfg.batch} is no multiple of {GROUP}")
        return self

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return (self.latent_channels, self.latent_size, self.latent_size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, self.image_size, self.image_size)

    @property
    def generator_widths(self) -> list[int]:
        """Channels of each level."""
        return [self.generator.nf * mult for mult in self.generator.ch_mult]

    @property
    def autoencoder_widths(self) -> list[int]:
        """Channels of each level."""
        return [self.autoencoder.ch * mult for mult in self.autoencoder.ch_mult]

    @property
    def downsampling(self) -> int:
        """f: image side / latent side."""
        return 1 << (len(self.autoencoder.ch_mult) - 1)


def check_widths(generator: Generator, autoencoder: AutoencoderConfig) -> None:
    """Raise ValueError for widths that group normalisation cannot cut into equal groups."""
    if autoencoder.ch % AUTOENCODER_GROUPS:
        raise ValueError(f"autoencoder.ch {autoencoder.ch} is no multiple of {AUTOENCODER_GROUPS}")
    widths = [generator.nf * mult for mult in generator.ch_mult]
    joined = [a + b for a, b in combinations_with_replacement(widths, 2)]  # with the skip stack
    for width in (*widths, *joined):
        groups = generator_groups(width)
        if groups == 0 or width % groups:
            raise ValueError(
                f"generator.nf {generator.nf} gives a width of {width}, which cannot be "
                f"cut into {max(groups, 1)} equal groups"
            )


def generator_groups(channels: int) -> int:
    """Groups that the generator normalises `channels` in."""
    return min(channels // 4, GENERATOR_GROUPS)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(  # FID 2.98 (Tables 3-4; Tables 6-7 have 3.03)
            name="cifar10",
            image_size=32,
            latent_channels=4,
            latent_size=16,
            scale_factor=105.0,
            steps=4,
            generator=Generator(
                nf=128,
                ch_mult=(1, 2, 2),
                blocks=2,
                attention=(),
                nz=50,
                mapping_layers=4,
                z_emb_dim=256,
            ),
            autoencoder=AutoencoderConfig(
                kind="kl",
                ch=128,
                ch_mult=(1, 2),
                blocks=2,
                attention=(16,),
                tanh=True,
                dropout=0.2,
            ),
            discriminator=Discriminator(kind="small", ngf=64, layers=3),
            training=Training(
                lr_g=1.6e-4,
                lr_d=1.25e-4,
                batch=256,
                epochs=1700,
                ema_decay=0.9999,
                r1_gamma=0.02,
                r1_every=15,
                reconstruction=True,
            ),
            autoencoder_training=AutoencoderTraining(
                lr=1e-4, batch=64, epochs=200, disc_start=20_000
            ),
            paper=Paper(
                source="Table 3",
                fid=2.98,
                recall=0.58,
                seconds=0.08,
                differences="Table 8 has nz 25, the released code 50",
            ),
        ),
        Preset(  # FID 5.21 (Table 4; Tables 6-7 have 5.83)
            name="celeba_256",
            image_size=256,
            latent_channels=3,
            latent_size=64,
            scale_factor=6.0,
            steps=2,
            generator=Generator(
                nf=128,
                ch_mult=(1, 2, 2, 2),
                blocks=2,
                attention=(16,),
                nz=100,
                mapping_layers=3,
                z_emb_dim=256,
            ),
            autoencoder=AutoencoderConfig(
                kind="vq",
                ch=128,
                ch_mult=(1, 2, 4),
                blocks=2,
                attention=(),
                codes=8192,
            ),
            discriminator=Discriminator(kind="large", ngf=64, layers=4),
            training=Training(
                lr_g=2e-4,
                lr_d=1e-4,
                batch=128,
                epochs=500,
                ema_decay=0.999,
                r1_gamma=2.0,
                r1_every=10,
                reconstruction=True,
            ),
            autoencoder_training=AutoencoderTraining(
                lr=7.2e-5, batch=16, epochs=200, disc_weight=0.75
            ),
            paper=Paper(
                source="Table 4",
                fid=5.21,
                recall=0.40,
                seconds=0.55,
                differences="Table 1 has a latent of 4x64x64, the released code 3x64x64; "
                "Table 8 nz 25 and four mapping layers, the released code 100 and three",
            ),
        ),
        Preset(  # FID 4.67 (Table 5); nz 100 as in the released test, 50 in the released training
            name="lsun",
            image_size=256,
            latent_channels=4,
            latent_size=32,
            scale_factor=60.0,
            steps=4,
            generator=Generator(
                nf=128,
                ch_mult=(1, 2, 2, 2),
                blocks=3,
                attention=(16,),
                nz=100,
                mapping_layers=3,
                z_emb_dim=256,
            ),
            autoencoder=AutoencoderConfig(
                kind="kl",
                ch=128,
                ch_mult=(1, 2, 4, 4),
                blocks=2,
                attention=(),
            ),
            discriminator=Discriminator(kind="large", ngf=64, layers=4),
            training=Training(
                lr_g=2e-4,
                lr_d=1e-4,
                batch=128,
                epochs=1000,
                ema_decay=0.999,
                r1_gamma=1.0,
                r1_every=10,
                reconstruction=False,
            ),
            autoencoder_training=AutoencoderTraining(lr=7.2e-5, batch=16, epochs=5),
            paper=Paper(
                source="Table 5",
                fid=4.67,
                recall=0.42,
                seconds=1.02,
                differences="Table 1 has a latent of 3x32x32, the released code 4x32x32; Table 8 "
                "nz 25, four mapping layers and two blocks, the released code 100, three and three",
            ),
        ),
        Preset(  # scikit-learn's 1,797 scans, 8x8 -> 32x32; sizes set by bench/studies/digits.py
            name="digits",
            image_size=32,
            latent_channels=4,
            latent_size=8,
            scale_factor=1.0,
            steps=4,
            generator=Generator(
                nf=40,
                ch_mult=(1, 1),
                blocks=1,
                attention=(),
                nz=50,
                mapping_layers=2,
                z_emb_dim=64,
            ),
            autoencoder=AutoencoderConfig(
                kind="kl",
                ch=32,
                ch_mult=(1, 1, 1),
                blocks=1,
                attention=(),
            ),
            discriminator=Discriminator(kind="small", ngf=16, layers=3, t_emb_dim=128),
            training=Training(
                lr_g=4e-4,
                lr_d=5e-4,
                batch=64,
                epochs=220,
                ema_decay=0.999,
                r1_gamma=0.05,
                r1_every=15,
                reconstruction=True,
                delta=1.0,
                flip=False,
                lr_min=2e-5,
            ),
            autoencoder_training=AutoencoderTraining(
                lr=1e-3,
                batch=64,
                epochs=25,
                lr_min=1e-5,
                kl_weight=1e-2,
                perceptual_weight=0.0,
                disc_weight=0.0,
                covered=0.95,
            ),
            beta_max=6.0,  # 256 latent values: at 20 only the last two steps have any signal
        ),
    )
}


def get_preset(name: str) -> Preset:
    """The preset called `name`. Raises BadInput naming the known ones."""
    if name not in PRESETS:
        raise BadInput(f"unknown data set '{name}'; known: {', '.join(PRESETS)}")
    return PRESETS[name]
