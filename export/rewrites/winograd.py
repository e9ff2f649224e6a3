"""3x3 convolutions by Winograd's minimal filtering F(4x4,3x3): a quarter of the multiply-adds.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308.  A tile of
4x4 outputs needs 6x6 inputs: Y = A'[(G g G') * (B' d B)]A, summed over the input channels before A.
All of it is matrix products here, which every engine has in its fastest form.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

TILE: Final = 4  # outputs of a tile, in each direction
SPAN: Final = 6  # inputs that they need

# Equations of section 4.1 of the paper, for F(4,3).
INPUTS: Final = (  # B': [SPAN of the transform, SPAN of the input]
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
KERNEL: Final = (  # G: [SPAN, 3]
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
OUTPUTS: Final = (  # A': [TILE, SPAN]
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)


class WinogradConv(nn.Module):
    """A 3x3 convolution with padding 1 of [B,in,n,n], n a multiple of 4."""

    into: Tensor
    kernel: Tensor
    out: Tensor

    def __init__(self, conv: nn.Conv2d, size: int) -> None:
        super().__init__()
        assert size % TILE == 0, size
        self.tiles = size // TILE
        self.weight, self.bias = conv.weight, conv.bias
        dtype = conv.weight.dtype
        self.register_buffer("into", input_transform(size).to(dtype), persistent=False)
        self.register_buffer("kernel", matrix(KERNEL).to(dtype), persistent=False)
        self.register_buffer("out", output_transform(size).to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        n, width = self.tiles, SPAN * self.tiles
        kernel = self.kernel @ self.weight @ self.kernel.T  # [out,in,SPAN,SPAN]
        kernel = kernel.permute(2, 3, 0, 1).flatten(0, 1)  # [SPAN^2,out,in]
        tiles = self.into.T @ (x @ self.into)  # [B,in,SPAN*n,SPAN*n]
        tiles = tiles.reshape(batch, channels, SPAN, n, SPAN, n).permute(2, 4, 1, 0, 3, 5)
        made = kernel @ tiles.reshape(SPAN * SPAN, channels, -1)  # [SPAN^2,out,B*n*n]
        made = made.reshape(SPAN, SPAN, -1, batch, n, n).permute(3, 2, 0, 4, 1, 5)
        image = self.out.T @ (made.reshape(batch, -1, width, width) @ self.out)  # [B,out,size,size]
        return image if self.bias is None else image + self.bias[:, None, None]


def matrix(rows: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def input_transform(size: int) -> Tensor:
    """B' of every tile of a row of `size` samples, zeros beyond its ends: [size, SPAN*tiles]."""
    tiles = size // TILE
    transform = torch.zeros(size, SPAN, tiles, dtype=torch.float64)
    for tile in range(tiles):
        first = TILE * tile - 1
        inside = slice(max(first, 0), min(first + SPAN, size))
        transform[inside, :, tile] = matrix(INPUTS).T[inside.start - first : inside.stop - first]
    return transform.flatten(1)


def output_transform(size: int) -> Tensor:
    """A' of every tile of a row: [SPAN*tiles, size]."""
    tiles = size // TILE
    transform = torch.zeros(SPAN, tiles, tiles, TILE, dtype=torch.float64)
    for tile in range(tiles):
        transform[:, tile, tile] = matrix(OUTPUTS).T
    return transform.reshape(SPAN * tiles, size)
