"""scikit-learn's scanned digits, which need no download."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from lddgan.extras import require

SCAN_MAX: Final = 16.0  # scikit-learn's scans hold 0..16
SIZE: Final = 32


def digits() -> Tensor:
    """scikit-learn's 1,797 scans of handwritten digits, enlarged: float32 [1797,3,32,32] in [-1,1].

    Bicubic from 8x8 to 32x32, grey repeated to three channels.  Raises LddganError with the line to
    run if scikit-learn is missing.
    """
    require("sklearn")
    from sklearn.datasets import load_digits

    return enlarge(torch.from_numpy(load_digits().images))


def enlarge(scans: Tensor) -> Tensor:
    """Scans [N,8,8] in 0..16 -> float32 [N,3,32,32] in [-1,1], bicubically."""
    grey = scans.float()[:, None] / SCAN_MAX * 2 - 1  # [N,1,8,8]
    size = (SIZE, SIZE)
    grey = F.interpolate(grey, size, mode="bicubic", align_corners=False).clamp(-1, 1)
    return grey.repeat(1, 3, 1, 1)
