"""Nearest x2 and a 3x3 convolution with 4/9 of the multiply-adds.

It is a transposed convolution of a 4x4 kernel with stride 2, which is four 2x2 convolutions.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.networks.autoencoder import Upsample
from lddgan.networks.haar import interleaved

# Row k of the 4-tap transposed kernel is the sum of these rows of the 3-tap kernel: nearest x2
# repeats each sample, so two of the three taps fall on the same one.
TAPS = ((2,), (1, 2), (0, 1), (0,))

# Output row 2i+p is made of the input rows i-1+p and i+p, by these rows of the transposed kernel.
ROWS: Final = ((3, 1), (2, 0))
PARITIES: Final = ((0, 0), (0, 1), (1, 0), (1, 1))  # of output row and column


def fold_nearest_upsampling(weight: Tensor) -> Tensor:
    """Kernel of "nearest x2, then 3x3 convolution" as one transposed convolution.

    weight [out,in,3,3] -> [in,out,4,4] for conv_transpose2d with stride 2, padding 1.  Exact, the
    border included; 4/9 of the multiply-adds.
    """
    rows = torch.stack([weight[:, :, list(taps)].sum(dim=2) for taps in TAPS], dim=2)
    folded = torch.stack([rows[:, :, :, list(taps)].sum(dim=3) for taps in TAPS], dim=3)
    return folded.transpose(0, 1).contiguous()


def as_transposed(upsample: Upsample) -> nn.ConvTranspose2d:
    """The transposed convolution equal to nearest x2 followed by the 3x3 convolution."""
    conv = upsample.conv
    with torch.device("meta"):
        folded = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1)
    folded.weight = nn.Parameter(fold_nearest_upsampling(conv.weight.detach()), False)
    folded.bias = conv.bias
    return folded


class Phases(nn.Module):
    """A 4x4 transposed convolution of stride 2, padding 1 as four convolutions.

    One makes the outputs of even rows and columns, and so on: [B,in,h,w] -> [B,out,2h,2w].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight [in,out,4,4], as of conv_transpose2d."""
        super().__init__()
        self.bias, swapped = bias, weight.transpose(0, 1)
        kernels = [swapped[:, :, ROWS[p]][:, :, :, ROWS[q]].contiguous() for p, q in PARITIES]
        self.kernels = nn.ParameterList(nn.Parameter(kernel, False) for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            F.conv2d(F.pad(x, (1 - q, q, 1 - p, p)), kernel, self.bias)
            for kernel, (p, q) in zip(self.kernels, PARITIES, strict=True)
        ]
        return interleaved(torch.cat(parts, dim=1))


def upsampling_in_phases(upsample: Upsample) -> Phases:
    """Nearest x2 followed by the 3x3 convolution."""
    folded = as_transposed(upsample)
    return Phases(folded.weight, folded.bias)
