"""The generator: NCSN++ with adaptive group normalisation, G(x_t, t, z) -> x_0.

As in published checkpoints, layers are numbered in the order of their use (`all_modules.N`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.networks.configs import NcsnppConfig, generator_groups
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
Embedding = Any  # Tensor [B,...]; export/rewrites passes what its own layers read
NEARLY_ZERO = 1e-10  # initial scale of layers that start as (almost) nothing


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
        gamma, beta = style.split([self.norm.num_channels] * 2, dim=1)
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
        h = self.resample(F.silu(self.GroupNorm_0(x, zemb)))
        h = self.Conv_0(h) + self.Dense_0(temb)[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h, zemb)))
        return self.rescale(self.Conv_2(self.resample_skip(x)) + h)


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


class Generator(nn.Module):
    """G(x_t, t, z) -> x_0: [B,C,h,w], int [B], [B,nz] -> [B,C,h,w] in [-1, 1]."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        cfg = preset.generator
        assert isinstance(cfg, NcsnppConfig)
        self.cfg = cfg
        self.latent_size = preset.latent_size
        self.all_modules = nn.ModuleList(_modules(cfg, preset.latent_channels, preset.latent_size))
        mapping: list[nn.Module] = [nn.Identity()]  # index 0: the normalisation of z
        for width in [cfg.nz] + [cfg.z_emb_dim] * cfg.mapping_layers:
            mapping += [linear(width, cfg.z_emb_dim), nn.SiLU()]
        self.z_transform = nn.Sequential(*mapping)

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return self.unet(x_t, self.embed_time(t), self.embed_latent(z))

    def embed_time(self, t: Tensor) -> Tensor:
        """The step as every block takes it: int [B] -> [B,4*nf]."""
        first, second = self.all_modules[:2]
        temb = first(sinusoid(t, self.cfg.nf).to(self._dtype))
        return F.silu(second(F.silu(temb)))

    def embed_latent(self, z: Tensor) -> Tensor:
        """The latent as every block takes it: [B,nz] -> [B,z_emb_dim]."""
        # Not mean: TensorRT 8.6 takes the mean of opset 18 over the batch too.
        power = z.square().sum(dim=1, keepdim=True) / self.cfg.nz  # [B,1]
        z = z / torch.sqrt(power + 1e-8)
        embedded: Tensor = self.z_transform(z.to(self._dtype))
        return embedded

    def unet(self, x_t: Tensor, temb: Embedding, zemb: Embedding) -> Tensor:
        """x_t [B,C,h,w] and what `embed_time` and `embed_latent` give -> x_0 [B,C,h,w]."""
        module = iter(self.all_modules[2:])
        h, skips = self._down(module, x_t.to(self._dtype), temb, zemb)
        h = next(module)(h, temb, zemb)
        h = next(module)(h)
        h = next(module)(h, temb, zemb)
        h = self._up(module, h, skips, temb, zemb)
        h = F.silu(next(module)(h))
        return torch.tanh(next(module)(h))

    def _down(
        self, module: Iterator[nn.Module], x_t: Tensor, temb: Embedding, zemb: Embedding
    ) -> tuple[Tensor, list[Tensor]]:
        pyramid = x_t
        h = next(module)(x_t)
        skips = [h]
        for level in range(len(self.cfg.ch_mult)):
            for _ in range(self.cfg.blocks):
                h = next(module)(h, temb, zemb)
                if self._attends(level):
                    h = next(module)(h)
                skips.append(h)
            if level != len(self.cfg.ch_mult) - 1:
                h = next(module)(h, temb, zemb)
                h = pyramid = (next(module)(pyramid) + h) * SQRT_HALF
                skips.append(h)
        return h, skips

    def _up(
        self,
        module: Iterator[nn.Module],
        h: Tensor,
        skips: list[Tensor],
        temb: Embedding,
        zemb: Embedding,
    ) -> Tensor:
        for level in reversed(range(len(self.cfg.ch_mult))):
            for _ in range(self.cfg.blocks + 1):
                h = next(module)(torch.cat([h, skips.pop()], dim=1), temb, zemb)
            if self._attends(level):
                h = next(module)(h)
            if level != 0:
                h = next(module)(h, temb, zemb)
        return h

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _attends(self, level: int) -> bool:
        return (self.latent_size >> level) in self.cfg.attention


def _modules(cfg: NcsnppConfig, channels: int, size: int) -> list[nn.Module]:
    """The layers of the U-Net for [B,channels,size,size], numbered in the order of their use."""
    widths = cfg.widths
    temb_dim = 4 * cfg.nf
    attends = [(size >> level) in cfg.attention for level in range(len(widths))]

    def block(
        inputs: int, outputs: int, resample: type[FirDown | FirUp] | None = None
    ) -> ResidualBlock:
        return ResidualBlock(inputs, outputs, temb_dim, cfg.z_emb_dim, resample)

    modules: list[nn.Module] = [linear(cfg.nf, temb_dim), linear(temb_dim, temb_dim)]
    modules.append(conv3x3(channels, cfg.nf))

    # Down.
    h, pyramid = cfg.nf, channels
    skips = [h]
    for level, width in enumerate(widths):
        for _ in range(cfg.blocks):
            modules.append(block(h, width))
            h = width
            if attends[level]:
                modules.append(Attention(h))
            skips.append(h)
        if level != len(widths) - 1:
            modules += [block(h, h, FirDown), PyramidDown(pyramid, h)]
            pyramid = h
            skips.append(h)

    # Middle.
    modules += [block(h, h), Attention(h), block(h, h)]

    # Up.
    for level in reversed(range(len(widths))):
        for _ in range(cfg.blocks + 1):
            modules.append(block(h + skips.pop(), widths[level]))
            h = widths[level]
        if attends[level]:
            modules.append(Attention(h))
        if level != 0:
            modules.append(block(h, h, FirUp))

    modules.append(GroupNorm(generator_groups(h), h, eps=EPS))
    return [*modules, conv3x3(h, channels, NEARLY_ZERO)]
