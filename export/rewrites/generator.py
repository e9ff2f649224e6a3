"""What depends on the step or on z alone is computed once, in front of the U-Net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lddgan.networks.ncsnpp import AdaGN, Ncsnpp, ResidualBlock


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

    def __init__(self, generator: Ncsnpp, steps: int) -> None:
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
        return self.generator.denoise(x_t, parts, self.generator.embed_latent(z))


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


def styles_together(generator: Ncsnpp) -> None:
    """Compute all styles with one matrix product, in place."""
    layers: list[nn.Linear] = []
    for block in list(generator.modules()):
        for name, child in list(block.named_children()):
            if isinstance(child, AdaGN):
                setattr(block, name, StyledNorm(child.norm, len(layers)))
                layers.append(child.style)
    generator.z_transform.append(Styles(layers))
