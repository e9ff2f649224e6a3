"""The sizes of each kind of network, and what follows from them. Needs no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import combinations_with_replacement
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from lddgan.frozen import Count, Frozen, Share, Widths

Band = Literal["LL", "LH", "HL", "HH"]  # of the Haar transform
MLP_RATIO = 4  # of a transformer block's hidden width / its width


class GeneratorConfig(Frozen, ABC):
    kind: str
    nz: Count  # length of the latent z
    mapping_layers: NonNegativeInt  # layers of the mapping network after the first
    z_emb_dim: Count = 256  # width of the mapping network

    @property
    @abstractmethod
    def halvings(self) -> int:
        """How often the generator halves the resolution."""

    @property
    @abstractmethod
    def widest(self) -> int:
        """Channels of the widest layer."""

    @abstractmethod
    def largest_activation(self, latent_size: int) -> int:
        """Elements of the largest activation for one image."""


class NcsnppConfig(GeneratorConfig):
    """NCSN++ with adaptive group normalisation from z."""

    kind: Literal["ncsnpp"] = "ncsnpp"
    nf: Count  # width of the first level
    ch_mult: Widths  # width of each level / nf
    blocks: Count = 2  # residual blocks per level on the way down; one more on the way up
    attention: tuple[int, ...] = ()  # resolutions with self-attention, besides the middle

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.nf * mult for mult in self.ch_mult]

    @property
    def halvings(self) -> int:
        return len(self.ch_mult) - 1

    @property
    def widest(self) -> int:
        return max(self.widths)

    def resolutions(self, latent_size: int) -> list[int]:
        """The side of each level."""
        return [latent_size >> level for level in range(len(self.ch_mult))]

    def largest_activation(self, latent_size: int) -> int:
        # A level's blocks take h, of its own width or that of the level below, beside a skip, of
        # its own width or that of the level above.
        widths, sides = self.widths, self.resolutions(latent_size)
        levels = zip(sides, widths, [*widths[1:], widths[-1]], [self.nf, *widths[:-1]], strict=True)
        images = [side**2 * (own + max(own, below, above)) for side, own, below, above in levels]
        tokens = max(side**2 for side in sides if side in (*self.attention, sides[-1]))
        return max(*images, tokens**2)

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        joined = [a + b for a, b in combinations_with_replacement(self.widths, 2)]  # with the skips
        for width in (*self.widths, *joined):
            groups = generator_groups(width)
            if groups == 0 or width % groups:
                cut = f"cannot be cut into {max(groups, 1)} equal groups"
                raise ValueError(f"nf {self.nf} gives a width of {width}, which {cut}")
        return self


class WaveletConfig(NcsnppConfig):
    """NCSN++ that changes the resolution by the Haar transform; its middle halves it once more."""

    kind: Literal["wavelet-ncsnpp"] = "wavelet-ncsnpp"  # type: ignore[assignment]

    @property
    def halvings(self) -> int:
        return len(self.ch_mult)


class UVitConfig(GeneratorConfig):
    """U-ViT (arXiv 2209.12152) with adaptive normalisation from z."""

    kind: Literal["u-vit"] = "u-vit"
    width: Annotated[int, Field(ge=4, multiple_of=2)]  # of a token
    depth: Count  # transformer blocks, the middle one included: odd
    heads: Count
    patch: Literal[1, 2, 4, 8] = 2  # side of the square of latent pixels that a token stands for

    @property
    def halvings(self) -> int:
        return self.patch.bit_length() - 1

    @property
    def widest(self) -> int:
        return MLP_RATIO * self.width

    def largest_activation(self, latent_size: int) -> int:
        tokens = 1 + (latent_size // self.patch) ** 2
        return tokens * max(MLP_RATIO * self.width, self.heads * tokens)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.depth % 2 == 0:
            raise ValueError(f"depth {self.depth} is even; one block is in the middle")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        return self


def generator_groups(channels: int) -> int:
    """Groups that the generator normalises `channels` in."""
    return min(channels // 4, 32)


class AutoencoderConfig(Frozen, ABC):
    kind: str
    learned: ClassVar[bool] = True  # False: it has no parameters
    has_codes: ClassVar[bool] = False  # whether latents are replaced by codes of a codebook
    latent_channels: ClassVar[int | None] = None  # None: as many as the preset says

    @property
    @abstractmethod
    def factor(self) -> int:
        """f: image side / latent side."""

    @property
    @abstractmethod
    def widest(self) -> int:
        """Channels of the widest layer."""

    @abstractmethod
    def largest_activation(self, image_size: int) -> int:
        """Elements of the decoder's largest activation for one image."""

    def moments(self, channels: int) -> int:
        """Channels of what a latent of `channels` is drawn from."""
        return channels


class ConvConfig(AutoencoderConfig):
    """The convolutional autoencoder of VQGAN / latent diffusion."""

    ch: Count = 128
    groups: Count = 32  # of the group normalisation
    ch_mult: Widths
    blocks: Count = 2
    attention: tuple[int, ...] = ()  # resolutions with self-attention, besides the middle
    tanh: bool = False  # the decoder ends in tanh
    dropout: Share = 0.0  # training only

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.ch * mult for mult in self.ch_mult]

    @property
    def factor(self) -> int:
        return 1 << (len(self.ch_mult) - 1)

    @property
    def widest(self) -> int:
        return max(self.widths)

    def resolutions(self, image_size: int) -> list[int]:
        """The side of each level."""
        return [image_size >> level for level in range(len(self.ch_mult))]

    def largest_activation(self, image_size: int) -> int:
        # Level i has widths[i] channels; upsampling into it carries widths[i+1].
        carried = [max(pair) for pair in zip(self.widths, [*self.widths[1:], 0], strict=True)]
        sizes = [width * (image_size >> level) ** 2 for level, width in enumerate(carried)]
        tokens = max([image_size // self.factor, *self.attention]) ** 2
        return max(*sizes, tokens**2)

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.ch % self.groups:
            raise ValueError(f"ch {self.ch} is no multiple of groups {self.groups}")
        return self


class KlConfig(ConvConfig):
    """Latents are drawn from a normal distribution, which is pulled towards N(0,1)."""

    kind: Literal["kl"] = "kl"

    def moments(self, channels: int) -> int:
        return 2 * channels


class VqConfig(ConvConfig):
    """Latents are replaced by the nearest codes of a codebook."""

    kind: Literal["vq"] = "vq"
    codes: Count = 8192  # size of the codebook, as of latent diffusion's f = 4
    has_codes = True


class FreeConfig(ConvConfig):
    """The KL network without regularisation: its mean is the latent."""

    kind: Literal["none"] = "none"


class FixedConfig(AutoencoderConfig):
    """A transform of the image without parameters."""

    learned = False

    @property
    def widest(self) -> int:
        return 3 * self.factor**2

    def largest_activation(self, image_size: int) -> int:
        return 3 * image_size**2


class PixelsConfig(FixedConfig):
    """The latent is the image itself (DDGAN)."""

    kind: Literal["pixels"] = "pixels"
    latent_channels = 3

    @property
    def factor(self) -> int:
        return 1


class HaarConfig(FixedConfig):
    """The latent is the image's Haar coefficients, in four groups of RGB (WDDGAN)."""

    kind: Literal["haar"] = "haar"
    bands: tuple[Band, Band, Band, Band] = ("LL", "LH", "HL", "HH")  # in the order of the groups
    latent_channels = 12

    @property
    def factor(self) -> int:
        return 2

    @model_validator(mode="after")
    def _check_bands(self) -> Self:
        if len(set(self.bands)) < len(self.bands):
            raise ValueError(f"bands {', '.join(self.bands)} are not four different ones")
        return self


class DiscriminatorConfig(Frozen):
    """Time-conditional discriminator D(x_t, t, x_{t+1})."""

    kind: str
    ngf: Count = 64
    layers: Count  # residual blocks
    t_emb_dim: Annotated[int, Field(ge=4, multiple_of=2)] = 256

    multiples: ClassVar[tuple[int, ...]]  # widths of the blocks / ngf
    first_halves: ClassVar[bool]  # whether the first block halves the resolution; the others do
    last_scale: ClassVar[float]  # initial scale of the last convolution

    @property
    def halvings(self) -> int:
        """How often the discriminator halves the resolution."""
        return self.layers - (not self.first_halves)

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        if self.layers > len(self.multiples):
            raise ValueError(f"layers {self.layers} is above {len(self.multiples)}")
        return self


class SmallConfig(DiscriminatorConfig):
    """The discriminator for images of 32x32."""

    kind: Literal["small"] = "small"
    multiples = (2, 4, 8, 8)
    first_halves = False
    last_scale = 1e-10


class LargeConfig(DiscriminatorConfig):
    """The discriminator for images of 256x256."""

    kind: Literal["large"] = "large"
    multiples = (4, 8, 8, 8, 8, 8)
    first_halves = True
    last_scale = 1.0
