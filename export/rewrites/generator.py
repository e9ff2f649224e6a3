"""What depends on the step or on z alone is computed once, in front of the U-Net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.networks.generator import AdaGN, Generator, ResidualBlock
from lddgan.networks.layers import SQRT_HALF, GroupNorm


class Picked(nn.Module):
    """The part of a sequence of tensors that belongs to one layer."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[self.index]


class StepTable(nn.Module):
    """The generator with the time embedding of its T steps, and its projections, as constants."""

    table: Tensor  # [T, sum of the blocks' widths]

    def __init__(self, generator: Generator, steps: int) -> None:
        super().__init__()
        self.generator = generator
        blocks = [layer for layer in generator.modules() if isinstance(layer, ResidualBlock)]
        self.widths = [block.Dense_0.out_features for block in blocks]
        with torch.no_grad():
            temb = generator.embed_time(torch.arange(steps))
            table = torch.cat([block.Dense_0(temb) for block in blocks], dim=1)
        self.register_buffer("table", table, persistent=False)
        for index, block in enumerate(blocks):
            block.add_module("Dense_0", Picked(index))

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        parts = torch.split(self.table.index_select(0, t), self.widths, dim=1)
        return self.generator.unet(x_t, parts, self.generator.embed_latent(z))


class Styles(nn.Module):
    """All styles of the adaptive normalisations by one matrix product: [B,Z] -> each [B,C,1,1]."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.widths = [layer.out_features // 2 for layer in layers for _ in ("gamma", "beta")]
        with torch.device("meta"):
            self.product = nn.Linear(layers[0].in_features, sum(self.widths))
        self.product.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), False)
        self.product.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), False)

    def forward(self, zemb: Tensor) -> tuple[Tensor, ...]:
        styles: Tensor = self.product(zemb)
        return torch.split(styles[:, :, None, None], self.widths, dim=1)


class StyledNorm(nn.Module):
    """Adaptive group normalisation whose style was computed before."""

    def __init__(self, norm: nn.Module, index: int) -> None:
        super().__init__()
        self.norm, self.index = norm, index

    def forward(self, x: Tensor, styles: Sequence[Tensor]) -> Tensor:
        gamma, beta = styles[2 * self.index : 2 * self.index + 2]
        return gamma * self.norm(x) + beta


def styles_together(generator: Generator) -> None:
    """Compute all styles with one matrix product, in place."""
    layers: list[nn.Linear] = []
    for block in list(generator.modules()):
        for name, child in list(block.named_children()):
            if isinstance(child, AdaGN):
                setattr(block, name, StyledNorm(child.norm, len(layers)))
                layers.append(child.style)
    generator.z_transform.append(Styles(layers))


class BareGroupNorm(nn.Module):
    """Group normalisation without scale and shift, float32 statistics: [B,C,h,w]."""

    def __init__(self, norm: GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.num_channels, self.eps = norm.num_groups, norm.num_channels, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        groups = x.float().reshape(x.shape[0], self.num_groups, -1)
        return F.instance_norm(groups, eps=self.eps).reshape(x.shape).to(x.dtype)


def bare(norm: GroupNorm) -> nn.Module:
    """The normalisation without scale and shift, if it has none."""
    return norm if norm.affine else BareGroupNorm(norm)


class SkipFirst(nn.Module):
    """FIR upsampling followed by a 1x1 convolution, the convolution first: a quarter of its work.

    The bias comes last, as the filter does not keep a constant at the border.
    """

    def __init__(self, conv: nn.Conv2d, up: nn.Module) -> None:
        super().__init__()
        assert conv.bias is not None
        self.weight, self.bias, self.up = conv.weight, conv.bias, up

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.conv2d(x, self.weight)) + self.bias[:, None, None]


@torch.no_grad()
def rescale_in_weights(block: ResidualBlock) -> None:
    """1/sqrt(2) of the sum of two convolutions' outputs into their weights, in place."""
    for name in ("Conv_1", "Conv_2"):
        conv = block.get_submodule(name)
        for parameter in (conv.weight, conv.bias):
            assert isinstance(parameter, Tensor)
            parameter.mul_(SQRT_HALF)
    block.add_module("rescale", nn.Identity())
