"""Group normalisation by sums over the image, which every layout of it takes alike.

As InstanceNormalization of [B,groups,n] it needs planes: OpenVINO, whose convolutions keep the
channels of a pixel together, changes the layout twice for each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SummedNorm(nn.Module):
    """Group normalisation of [B,C,h,w] in two passes: the mean, then the variance about it."""

    same: Tensor  # [C,C]: 1 for two channels of one group

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm, self.members = norm, norm.num_channels // norm.num_groups
        group = torch.arange(norm.num_channels) // self.members
        same = (group[:, None] == group[None]).to(torch.float32)
        self.register_buffer("same", same, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        away = x - self.mean(x)
        scale = torch.rsqrt(self.mean(away * away) + self.norm.eps)
        if not self.norm.affine:
            return away * scale
        return away * (scale * self.norm.weight[:, None, None]) + self.norm.bias[:, None, None]

    def mean(self, x: Tensor) -> Tensor:
        """The mean of each channel's group: [B,C,h,w] -> [B,C,1,1]."""
        means = x.sum(dim=(2, 3)) / (self.members * x.shape[2] * x.shape[3])
        return (means @ self.same.to(x.dtype))[:, :, None, None]
