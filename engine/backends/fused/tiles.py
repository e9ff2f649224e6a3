"""Images as the kernels see them: a matrix, a row for each pixel and a column for each channel.

A program works on a tile of ROWS x COLUMNS of one image.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE: Final = 4096  # elements: 16 for each thread
WARPS: Final = 8  # of 32 threads
WIDEST: Final = 128  # columns of a tile


class Grid(NamedTuple):
    """How an image's pixels and channels are cut into tiles."""

    rows: int  # of a tile
    columns: int
    across: int  # tiles that hold all channels

    @classmethod
    def of(cls, channels: int) -> Grid:
        columns = min(triton.next_power_of_2(channels), WIDEST)
        return cls(TILE // columns, columns, triton.cdiv(channels, columns))

    @property
    def tile(self) -> dict[str, int]:
        """What kernels are compiled for."""
        return {"ROWS": self.rows, "COLUMNS": self.columns, "num_warps": WARPS}

    def tiles(self, pixels: int, batch: int) -> tuple[int, int, int]:
        """One program for each tile of every image."""
        return triton.cdiv(pixels, self.rows), self.across, batch


@triton.jit
def tile_of_program(pixels, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The image, rows and columns of a program's tile, and which of its elements there are."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < pixels)[:, None] & (columns < channels)[None, :]
    return tl.program_id(2).to(tl.int64), rows, columns, inside


def checked(x: Tensor) -> Tensor:
    """Return the image, which must be channels-last: anything else would be misread."""
    assert x.is_contiguous(memory_format=torch.channels_last), (x.shape, x.stride())
    return x


def like(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Make as many uninitialised images of another size."""
    shape = (len(x), channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
