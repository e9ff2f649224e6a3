"""The patch discriminator of the autoencoder's adversarial loss (arXiv 1611.07004, 2012.09841)."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

SLOPE = 0.2  # of LeakyReLU


class PatchDiscriminator(nn.Module):
    """Image [B,3,H,W] -> one logit per patch [B,1,h,w], positive for real.

    h = H / 2^layers - 2, so that H must be at least 3 * 2^layers.  With three layers a logit sees
    70x70 pixels, and the others through group normalisation, which stands where VQGAN has batch
    normalisation: the statistics of a batch would differ between one machine and several.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(layers + 1)]
        self.net = nn.Sequential(conv(3, width, stride=2), nn.LeakyReLU(SLOPE))
        for level, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            self.net.append(conv(inputs, outputs, stride=2 if level < layers else 1))
            # At most 32 groups, of two channels or more: one alone would be normalised to nothing.
            self.net.append(nn.GroupNorm(math.gcd(32, outputs // 2), outputs))
            self.net.append(nn.LeakyReLU(SLOPE))
        self.net.append(conv(widths[-1], 1, stride=1))

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


def conv(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """4x4 convolution, padding 1; weights start as N(0, 0.02), biases as 0."""
    layer = nn.Conv2d(inputs, outputs, 4, stride, padding=1)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
