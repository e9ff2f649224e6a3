"""NCSN++ with adaptive group normalisation from z.

As in published checkpoints, layers are numbered in the order of their use (`all_modules.N`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.networks.configs import NcsnppConfig, generator_groups
from lddgan.networks.generator import NEARLY_ZERO, Embedding, Generator, mapping_network
from lddgan.networks.layers import (
    SQRT_HALF,
    FirDown,
    FirUp,
    GroupNorm,
    attention,
    conv1x1,
    conv3x3,
    linear,
    sinusoid,
    to_image,
    to_tokens,
    uniform_fan_avg_,
)
from lddgan.preset import Preset

EPS = 1e-6  # group normalisation


class AdaGN(nn.Module):
    """Group normalisation whose scale and shift come from z: x [B,C,h,w], zemb [B,Z]."""

    def __init__(self, channels: int, z_emb_dim: int) -> None:
        super().__init__()
        self.norm = GroupNorm(generator_groups(channels), channels, eps=EPS, affine=False)
        self.style = linear(z_emb_dim, 2 * channels)
        with torch.no_grad():
            self.style.bias[:channels] = 1.0

    def forward(self, x: Tensor, zemb: Tensor) -> Tensor:
        style = self.style(zemb)[:, :, None, None]
        gamma, beta = style.split([self.style.out_features // 2] * 2, dim=1)
        return gamma * self.norm(x) + beta


class NIN(nn.Module):
    """Per-position linear layer with weight W [in,out]: [B,N,in] -> [B,N,out]."""

    def __init__(self, inputs: int, outputs: int, scale: float) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(inputs, outputs))
        self.b = nn.Parameter(torch.zeros(outputs))
        uniform_fan_avg_(self.W.data, scale)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens @ self.W + self.b


class Attention(nn.Module):
    """Self-attention with one head: [B,C,h,w] -> [B,C,h,w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = GroupNorm(generator_groups(channels), channels, eps=EPS)
        self.NIN_0 = NIN(channels, channels, 0.1)
        self.NIN_1 = NIN(channels, channels, 0.1)
        self.NIN_2 = NIN(channels, channels, 0.1)
        self.NIN_3 = NIN(channels, channels, NEARLY_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        tokens = to_tokens(self.GroupNorm_0(x))
        h = attention(self.NIN_0(tokens), self.NIN_1(tokens), self.NIN_2(tokens))
        return (x + to_image(self.NIN_3(h), x)) * SQRT_HALF


class Rescale(nn.Module):
    """Divides the sum of two by the square root of 2, which keeps the variance."""

    def forward(self, total: Tensor) -> Tensor:
        return total * SQRT_HALF


class ResidualBlock(nn.Module):
    """BigGAN residual block: x [B,in,h,w] -> [B,out,h',w'], h' = h, h/2 or 2h."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        temb_dim: int,
        z_emb_dim: int,
        resample: type[FirDown | FirUp] | None = None,
    ) -> None:
        super().__init__()
        self.GroupNorm_0 = AdaGN(inputs, z_emb_dim)
        self.resample = self.resample_skip = resample(inputs) if resample else nn.Identity()
        self.Conv_0 = conv3x3(inputs, outputs)
        self.Dense_0 = linear(temb_dim, outputs)
        self.GroupNorm_1 = AdaGN(outputs, z_emb_dim)
        self.Conv_1 = conv3x3(outputs, outputs, NEARLY_ZERO)
        reshapes = inputs != outputs or resample is not None
        self.Conv_2 = conv1x1(inputs, outputs) if reshapes else nn.Identity()
        self.rescale = Rescale()

    def forward(self, x: Tensor, temb: Embedding, zemb: Embedding) -> Tensor:
        h = self.Conv_0(self.resample(F.silu(self.GroupNorm_0(x, zemb))))
        return self.join(h, self.Conv_2(self.resample_skip(x)), temb, zemb)

    def join(self, h: Tensor, x: Tensor, temb: Embedding, zemb: Embedding) -> Tensor:
        """The second half of the block on h, added to x: [B,out,h',w'] each."""
        h = h + self.Dense_0(temb)[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h, zemb)))
        return self.rescale(x + h)


class PyramidDown(nn.Module):
    """FIR, then 3x3 convolution with stride 2: the input pyramid, [B,in,h,w] -> [B,out,h/2,w/2]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fir = FirDown(inputs, padding=2, stride=1)
        self.Conv2d_0 = nn.Conv2d(inputs, outputs, 3, stride=2)
        uniform_fan_avg_(self.Conv2d_0.weight.data)
        nn.init.zeros_(self.Conv2d_0.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv2d_0(self.fir(x))


class Resampling(NamedTuple):
    """The layers of a U-Net that change the resolution; D stands for temb_dim, z_emb_dim."""

    down: Callable[[int, int, int], nn.Module]  # channels, D
    pyramid: Callable[[int, int], nn.Module]  # channels of the pyramid and of the next level
    up: Callable[[int, int, int, int], nn.Module]  # channels, those of the level above, D


FIR = Resampling(
    down=lambda channels, temb, zemb: ResidualBlock(channels, channels, temb, zemb, FirDown),
    pyramid=PyramidDown,
    up=lambda channels, above, temb, zemb: ResidualBlock(channels, channels, temb, zemb, FirUp),
)


class Ncsnpp(Generator):
    """The generator of LDDGAN on latents, of DDGAN on pixels, and of WDDGAN for cifar10."""

    cfg: NcsnppConfig
    resampling = FIR

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        cfg = preset.generator
        assert isinstance(cfg, NcsnppConfig)
        self.cfg = cfg
        self.latent_size = preset.latent_size
        self.all_modules = nn.ModuleList(self._modules_of(preset.latent_channels))
        self.z_transform = mapping_network(cfg)

    def embed_time(self, t: Tensor) -> Tensor:
        """The step as every block takes it: int [B] -> [B,4*nf]."""
        first, second = self.all_modules[:2]
        temb = first(sinusoid(t, self.cfg.nf).to(self.dtype))
        return F.silu(second(F.silu(temb)))

    def denoise(self, x_t: Tensor, temb: Embedding, zemb: Embedding) -> Tensor:
        module = iter(self.all_modules[2:])
        h, skips, kept = self._down(module, x_t.to(self.dtype), temb, zemb)
        h = self._middle(module, h, temb, zemb)
        h = self._up(module, h, skips, kept, temb, zemb)
        h = F.silu(next(module)(h))
        return torch.tanh(next(module)(h))

    def _down(
        self, module: Iterator[nn.Module], x_t: Tensor, temb: Embedding, zemb: Embedding
    ) -> tuple[Tensor, list[Tensor], list[Any]]:
        """(h at the lowest resolution, the skips, what each halving keeps for the way up)."""
        pyramid = x_t
        h = next(module)(x_t)
        skips, kept = [h], []
        for level in range(len(self.cfg.ch_mult)):
            for _ in range(self.cfg.blocks):
                h = next(module)(h, temb, zemb)
                if self._attends(level):
                    h = next(module)(h)
                skips.append(h)
            if level != len(self.cfg.ch_mult) - 1:
                h, keep = self._halve(next(module), h, temb, zemb)
                h = pyramid = (self._reduce(next(module), pyramid) + h) * SQRT_HALF
                skips.append(h)
                kept.append(keep)
        return h, skips, kept

    def _middle(
        self, module: Iterator[nn.Module], h: Tensor, temb: Embedding, zemb: Embedding
    ) -> Tensor:
        h = next(module)(h, temb, zemb)
        h = next(module)(h)
        return next(module)(h, temb, zemb)

    def _up(
        self,
        module: Iterator[nn.Module],
        h: Tensor,
        skips: list[Tensor],
        kept: list[Any],
        temb: Embedding,
        zemb: Embedding,
    ) -> Tensor:
        for level in reversed(range(len(self.cfg.ch_mult))):
            for _ in range(self.cfg.blocks + 1):
                h = next(module)(torch.cat([h, skips.pop()], dim=1), temb, zemb)
            if self._attends(level):
                h = next(module)(h)
            if level != 0:
                h = self._double(next(module), h, kept.pop(), temb, zemb)
        return h

    # ---- how the resolution changes ----

    def _halve(
        self, block: nn.Module, h: Tensor, temb: Embedding, zemb: Embedding
    ) -> tuple[Tensor, Any]:
        """h [B,C,h,w] -> ([B,C,h/2,w/2], what `_double` takes at the same level)."""
        return block(h, temb, zemb), None

    def _reduce(self, layer: nn.Module, pyramid: Tensor) -> Tensor:
        """The input pyramid [B,C,h,w] -> [B,C',h/2,w/2]."""
        return layer(pyramid)

    def _double(
        self, block: nn.Module, h: Tensor, keep: Any, temb: Embedding, zemb: Embedding
    ) -> Tensor:
        """h [B,C,h,w] -> [B,C,2h,2w]."""
        return block(h, temb, zemb)

    def _attends(self, level: int) -> bool:
        return (self.latent_size >> level) in self.cfg.attention

    def _modules_of(self, channels: int) -> list[nn.Module]:
        """The layers for [B,channels,size,size], numbered in the order of their use."""
        cfg, widths = self.cfg, self.cfg.widths
        dims = (4 * cfg.nf, cfg.z_emb_dim)  # of the two embeddings

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, *dims)

        modules: list[nn.Module] = [linear(cfg.nf, dims[0]), linear(dims[0], dims[0])]
        modules.append(conv3x3(channels, cfg.nf))

        # Down.
        h, pyramid = cfg.nf, channels
        skips = [h]
        for level, width in enumerate(widths):
            for _ in range(cfg.blocks):
                modules.append(block(h, width))
                h = width
                if self._attends(level):
                    modules.append(Attention(h))
                skips.append(h)
            if level != len(widths) - 1:
                modules += [self.resampling.down(h, *dims), self.resampling.pyramid(pyramid, h)]
                pyramid = h
                skips.append(h)

        # Middle.
        modules += [block(h, h), Attention(h), block(h, h)]

        # Up.
        for level in reversed(range(len(widths))):
            for _ in range(cfg.blocks + 1):
                modules.append(block(h + skips.pop(), widths[level]))
                h = widths[level]
            if self._attends(level):
                modules.append(Attention(h))
            if level != 0:
                modules.append(self.resampling.up(h, widths[level - 1], *dims))

        modules.append(GroupNorm(generator_groups(h), h, eps=EPS))
        return [*modules, conv3x3(h, channels, NEARLY_ZERO)]
