"""3x3 convolutions by Winograd's minimal filtering F(4x4,3x3): a quarter of the multiply-adds.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308.  A tile of
4x4 outputs needs 6x6 inputs: Y = A'[(G g G') * (B' d B)]A, summed over the input channels before A.
All of it is matrix products here, which every engine has in its fastest form.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

TAPS: Final = 3  # of the kernel, in each direction
TILE: Final = 4  # outputs of a tile
SPAN: Final = TILE + TAPS - 1  # inputs that they need

MOST_TILES: Final = 256  # of a channel in one strip: more no longer fit a cache

# Where the polynomials are evaluated, besides infinity.  With the paper's 0, 1, -1, 2, -2 the
# rounding errors of 512 channels are six times as large.
POINTS: Final = (0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2))


class Transforms(NamedTuple):
    """Of minimal filtering in one direction, in float64."""

    outputs: NDArray[np.float64]  # A': [TILE,SPAN]
    kernel: NDArray[np.float64]  # G: [SPAN,TAPS]
    inputs: NDArray[np.float64]  # B': [SPAN,SPAN]


def minimal_filtering() -> Transforms:
    """Toom and Cook's algorithm at POINTS and infinity, transposed (section 4 of the paper)."""
    outputs, kernel, inputs = (np.zeros((size, SPAN)) for size in (TILE, TAPS, SPAN))
    for index, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        outputs[:, index] = point ** np.arange(TILE)
        kernel[:, index] = point ** np.arange(TAPS) / np.prod([point - other for other in others])
        inputs[: SPAN - 1, index] = np.poly(others)[::-1]  # lowest power first
    outputs[-1, -1] = kernel[-1, -1] = 1.0
    inputs[:, -1] = np.poly(POINTS)[::-1]
    return Transforms(outputs, kernel.T, inputs.T)


class WinogradConv(nn.Module):
    """A 3x3 convolution with padding 1 of [B,in,size,size], size a multiple of 4.

    It works in strips of some rows of tiles, so that their transforms stay small.
    """

    into: Tensor
    kernel: Tensor
    out: Tensor

    def __init__(self, conv: nn.Conv2d, size: int) -> None:
        super().__init__()
        assert size % TILE == 0, size
        self.size, self.tiles = size, size // TILE
        self.rows = max(1, MOST_TILES // self.tiles)  # of tiles, in a strip
        self.weight, self.bias = conv.weight, conv.bias
        dtype = conv.weight.dtype
        self.register_buffer("into", input_transform(size).to(dtype), persistent=False)
        kernel = torch.from_numpy(minimal_filtering().kernel)
        self.register_buffer("kernel", kernel.to(dtype), persistent=False)
        self.register_buffer("out", output_transform(size).to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel @ self.weight @ self.kernel.T  # [out,in,SPAN,SPAN]
        kernel = kernel.permute(2, 3, 0, 1).flatten(0, 1)  # [SPAN^2,out,in]
        across = x @ self.into.flatten(1)  # [B,in,size,SPAN*tiles]
        firsts = range(0, self.tiles, self.rows)
        image = torch.cat([self.strip(across, kernel, first) for first in firsts], dim=2)
        return image if self.bias is None else image + self.bias[:, None, None]

    def strip(self, across: Tensor, kernel: Tensor, first: int) -> Tensor:
        """Rows of the output, [B,out,4*rows,size], from the tiles of row `first` on."""
        batch, channels = across.shape[:2]
        n, rows = self.tiles, min(self.rows, self.tiles - first)
        seen = slice(max(0, TILE * first - 1), TILE * (first + rows) + 1)  # rows of the input
        into = self.into[seen, :, first : first + rows].flatten(1)
        tiles = into.T @ across[:, :, seen]  # [B,in,SPAN*rows,SPAN*n]
        tiles = tiles.reshape(batch, channels, SPAN, rows, SPAN, n).permute(2, 4, 1, 0, 3, 5)
        made = kernel @ tiles.reshape(SPAN * SPAN, channels, -1)  # [SPAN^2,out,B*rows*n]
        made = made.reshape(SPAN, SPAN, -1, batch, rows, n).permute(3, 2, 0, 4, 1, 5)
        made = made.reshape(batch, -1, SPAN * rows, SPAN * n)
        out = self.out[:, :rows, : TILE * rows].flatten(0, 1)
        return out.T @ (made @ self.out.flatten(0, 1))


def input_transform(size: int) -> Tensor:
    """B' of every tile of a row of `size` samples, zeros beyond its ends: [size,SPAN,tiles]."""
    tiles = size // TILE
    padded = np.zeros((size + 2, SPAN, tiles))
    for tile in range(tiles):
        padded[TILE * tile : TILE * tile + SPAN, :, tile] = minimal_filtering().inputs.T
    return torch.from_numpy(padded[1:-1].copy())


def output_transform(size: int) -> Tensor:
    """A' of every tile of a row: [SPAN,tiles,size]."""
    tiles = size // TILE
    transform = np.zeros((SPAN, tiles, tiles, TILE))
    for tile in range(tiles):
        transform[:, tile, tile] = minimal_filtering().outputs.T
    return torch.from_numpy(transform.reshape(SPAN, tiles, size))
