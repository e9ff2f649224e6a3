"""The wavelet NCSN++ of WDDGAN (arXiv 2211.16152): NCSN++ that changes resolution by Haar.

It differs in four places: down and up blocks, the input pyramid, the middle.  Only a quarter of the
values go on at half the resolution; the three high bands are kept, and return on the way up.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.networks.generator import Embedding
from lddgan.networks.haar import Haar, InverseHaar
from lddgan.networks.layers import conv1x1, conv3x3
from lddgan.networks.ncsnpp import Ncsnpp, Resampling, ResidualBlock
from lddgan.preset import Preset


class HaarDown(ResidualBlock):
    """x [B,C,h,w] -> ([B,C,h/2,w/2], the high bands [B,3C,h/2,w/2])."""

    def __init__(self, channels: int, temb_dim: int, z_emb_dim: int) -> None:
        super().__init__(channels, channels, temb_dim, z_emb_dim)
        self.Conv_2 = conv1x1(channels, channels)
        self.haar = Haar()

    def forward(  # type: ignore[override]
        self, x: Tensor, temb: Embedding, zemb: Embedding
    ) -> tuple[Tensor, Tensor]:
        h, high = self.haar(self.Conv_0(F.silu(self.GroupNorm_0(x, zemb))))
        x, _ = self.haar(self.Conv_2(x))
        return self.join(h / 2, x / 2, temb, zemb), high


class HaarUp(ResidualBlock):
    """x [B,C,h,w] and the high bands [B,3A,h,w] of a level of A channels -> [B,C,2h,2w]."""

    def __init__(self, channels: int, above: int, temb_dim: int, z_emb_dim: int) -> None:
        super().__init__(channels, channels, temb_dim, z_emb_dim)
        self.Conv_2 = conv1x1(channels, channels)
        self.convH_0 = conv3x3(3 * above, 3 * channels, groups=3)
        self.inverse = InverseHaar()

    def forward(  # type: ignore[override]
        self, x: Tensor, high: Tensor, temb: Embedding, zemb: Embedding
    ) -> Tensor:
        h = self.Conv_0(F.silu(self.GroupNorm_0(x, zemb)))
        high = self.convH_0(high / 2) * 2
        h, x = self.inverse(2 * h, high), self.inverse(2 * self.Conv_2(x), high)
        return self.join(h, x, temb, zemb)


class WaveletNcsnpp(Ncsnpp):
    """The generator of WDDGAN for images of 256x256, on their Haar coefficients."""

    resampling = Resampling(
        down=HaarDown,
        pyramid=lambda inputs, outputs: conv3x3(4 * inputs, outputs),
        up=HaarUp,
    )

    def __init__(self, preset: Preset) -> None:
        super().__init__(preset)
        self.haar, self.inverse = Haar(), InverseHaar()

    def _halve(
        self, block: nn.Module, h: Tensor, temb: Embedding, zemb: Embedding
    ) -> tuple[Tensor, Tensor]:
        return block(h, temb, zemb)

    def _reduce(self, layer: nn.Module, pyramid: Tensor) -> Tensor:
        return layer(torch.cat(self.haar(pyramid), dim=1) / 2)

    def _double(
        self, block: nn.Module, h: Tensor, keep: Tensor, temb: Embedding, zemb: Embedding
    ) -> Tensor:
        return block(h, keep, temb, zemb)

    def _middle(
        self, module: Iterator[nn.Module], h: Tensor, temb: Embedding, zemb: Embedding
    ) -> Tensor:
        first, attention, second = next(module), next(module), next(module)
        h = attention(self._at_half(first, h, temb, zemb))
        return self._at_half(second, second(h, temb, zemb), temb, zemb)  # the same weights twice

    def _at_half(self, block: nn.Module, h: Tensor, temb: Embedding, zemb: Embedding) -> Tensor:
        """A block on the low band alone: [B,C,h,w] -> [B,C,h,w]."""
        low, high = self.haar(h)
        return self.inverse(2 * block(low / 2, temb, zemb), high)
