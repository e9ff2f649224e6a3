"""The Haar transform of images: four bands of half the resolution, and back, without loss.

Of four pixels LL is half the sum, LH half of left less right, HL half of top less bottom, HH half
of one diagonal less the other (arXiv 2211.16152).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Haar(nn.Module):
    """x [B,C,h,w] -> (LL [B,C,h/2,w/2], LH, HL and HH together [B,3C,h/2,w/2])."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = x[..., 0::2], x[..., 1::2]  # columns first: PyTorch is fastest so
        means, steps = (left + right) * 0.5, (left - right) * 0.5
        (top, bottom), (above, below) = ((y[:, :, 0::2], y[:, :, 1::2]) for y in (means, steps))
        return top + bottom, torch.cat([above + below, top - bottom, above - below], dim=1)


class InverseHaar(nn.Module):
    """(LL [B,C,h,w], LH, HL and HH together [B,3C,h,w]) -> x [B,C,2h,2w]: Haar's transpose."""

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        low, high = low * 0.5, high * 0.5
        lh, hl, hh = torch.split(high, [low.shape[1]] * 3, dim=1)
        top, bottom = low + hl, low - hl
        above, below = lh + hh, lh - hh
        parts = [top + above, top - above, bottom + below, bottom - below]
        return interleaved(torch.cat(parts, dim=1))


def interleaved(parts: Tensor) -> Tensor:
    """The parts of each parity, in turn, as one image: [B,4*C,h,w] -> [B,C,2h,2w].

    ONNX's DepthToSpace in mode DCR.
    """
    batch, channels, height, width = parts.shape
    blocks = parts.reshape(batch, 2, 2, channels // 4, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // 4, 2 * height, 2 * width)
