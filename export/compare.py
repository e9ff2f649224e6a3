"""How far two results are apart. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]


def relative_error(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Largest |a - b| / largest |b|; infinite if a is not finite."""
    error = float(np.abs(a - b).max() / np.abs(b).max())
    return error if np.isfinite(error) else float("inf")


def grey_levels(a: Images, b: Images) -> int:
    """Largest difference of two uint8 images."""
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def changed(a: Images, b: Images) -> float:
    """Share of values that differ."""
    return float((a != b).mean())


def psnr(a: Images, b: Images) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    mse = float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))
