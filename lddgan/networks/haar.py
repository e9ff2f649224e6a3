"""The Haar transform of images: four bands of half the resolution, and back, without loss.

FAMILIES of wavelets name the bands by row and column: LL is the mean, LH the difference of columns,
HL that of rows, HH that of both, each twice the mean over its four pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Haar(nn.Module):
    """x [B,C,h,w] -> (LL [B,C,h/2,w/2], LH, HL and HH together [B,3C,h/2,w/2])."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x[:, :, 0::2, 0::2], x[:, :, 0::2, 1::2]
        c, d = x[:, :, 1::2, 0::2], x[:, :, 1::2, 1::2]
        rows, columns = (a + b, a - b), (c + d, c - d)
        low = (rows[0] + columns[0]) * 0.5
        lh, hl, hh = rows[1] + columns[1], rows[0] - columns[0], rows[1] - columns[1]
        return low, torch.cat([lh, hl, hh], dim=1) * 0.5


class InverseHaar(nn.Module):
    """(LL [B,C,h,w], LH, HL and HH together [B,3C,h,w]) -> x [B,C,2h,2w]: Haar's transpose."""

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        lh, hl, hh = torch.split(high, [low.shape[1]] * 3, dim=1)
        top, bottom = low + hl, low - hl
        left, right = lh + hh, lh - hh
        parts = [top + left, top - left, bottom + right, bottom - right]  # a, b, c, d
        return interleaved(torch.cat(parts, dim=1) * 0.5)


def interleaved(parts: Tensor) -> Tensor:
    """The parts of each parity, in turn, as one image: [B,4*C,h,w] -> [B,C,2h,2w].

    ONNX's DepthToSpace in mode DCR.
    """
    batch, channels, height, width = parts.shape
    blocks = parts.reshape(batch, 2, 2, channels // 4, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // 4, 2 * height, 2 * width)
