"""Exact rewrites of a module before export: the same function, fewer operations."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from lddgan.networks.autoencoder import Upsample

Module = TypeVar("Module", bound=nn.Module)

# Row k of the 4-tap transposed kernel is the sum of these rows of the 3-tap kernel: nearest x2
# repeats each sample, so two of the three taps fall on the same one.
TAPS = ((2,), (1, 2), (0, 1), (0,))


def fold_nearest_upsampling(weight: Tensor) -> Tensor:
    """Kernel of "nearest x2, then 3x3 convolution" as one transposed convolution.

    weight [out,in,3,3] -> [in,out,4,4] for conv_transpose2d with stride 2, padding 1.  Exact, the
    border included; 4/9 of the multiply-adds.
    """
    rows = torch.stack([weight[:, :, list(taps)].sum(dim=2) for taps in TAPS], dim=2)
    folded = torch.stack([rows[:, :, :, list(taps)].sum(dim=3) for taps in TAPS], dim=3)
    return folded.transpose(0, 1).contiguous()


def fold_upsampling(module: Module) -> Module:
    """Replace, in place, every Upsample in `module` by its transposed convolution."""
    for name, child in list(module.named_modules()):
        if isinstance(child, Upsample):
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], transposed(child.conv))
    return module


def transposed(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """The transposed convolution equal to nearest x2 followed by `conv`."""
    with torch.device("meta"):
        folded = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1)
    folded.weight = nn.Parameter(fold_nearest_upsampling(conv.weight.detach()), False)
    folded.bias = conv.bias
    return folded
