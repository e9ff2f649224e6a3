"""Several images as one picture."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SMALLEST_TILE = 64  # pixels; smaller images are enlarged, by whole factors
GAP = 2  # pixels between the tiles


def grid(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N,H,W,3] -> one picture, as square as N allows, rows first."""
    count, height, width, _ = images.shape
    factor = max(1, math.ceil(SMALLEST_TILE / height))
    tiles = images.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    pitch = (height * factor + GAP, width * factor + GAP)
    canvas = np.full((rows * pitch[0] + GAP, columns * pitch[1] + GAP, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top = GAP + (index // columns) * pitch[0]
        left = GAP + (index % columns) * pitch[1]
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas
