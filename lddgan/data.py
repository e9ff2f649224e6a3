"""Training images: where they come from and in which order they are seen.

The training loop knows images only as `Images`: something with a length that turns indices into a
batch.  A tensor [N,3,H,W] is one already.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lddgan.errors import BadInput, LddganError

SCAN_MAX = 16.0  # scikit-learn's scans hold 0..16
DIGITS_SIZE = 32


class Images(Protocol):
    """N images, read by index: int64 [B] -> float32 [B,3,H,W] in [-1,1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


def digits() -> Tensor:
    """scikit-learn's 1,797 scans of handwritten digits, enlarged: float32 [1797,3,32,32] in [-1,1].

    Bicubic from 8x8 to 32x32, grey repeated to three channels; the scans come with scikit-learn.
    Raises LddganError with the line to run where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise LddganError(
            "the digits come with scikit-learn, which is missing: pip install scikit-learn"
        ) from error
    return enlarge(torch.from_numpy(load_digits().images))


def enlarge(scans: Tensor) -> Tensor:
    """Scans [N,8,8] in 0..16 -> float32 [N,3,32,32] in [-1,1], bicubically."""
    grey = scans.float()[:, None] / SCAN_MAX * 2 - 1  # [N,1,8,8]
    size = (DIGITS_SIZE, DIGITS_SIZE)
    grey = F.interpolate(grey, size, mode="bicubic", align_corners=False).clamp(-1, 1)
    return grey.repeat(1, 3, 1, 1)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order in which `count` images are seen in one epoch, int64 [count]."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))


def batches_per_epoch(count: int, batch: int) -> int:
    """Whole batches in `count` images. Raises BadInput if there is not one."""
    if count < batch:
        raise BadInput(f"{count} images are too few: one batch of this data set takes {batch}")
    return count // batch


def batches(count: int, batch: int, seed: int, first: int, last: int) -> Iterator[Tensor]:
    """Indices int64 [batch] of the training steps first..last-1.

    Each epoch is shuffled by (seed, epoch); what does not fill a batch waits for another epoch.
    """
    per_epoch = batches_per_epoch(count, batch)
    order = epoch_order(count, seed, first // per_epoch)
    for step in range(first, last):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            order = epoch_order(count, seed, epoch)
        yield order[position * batch : (position + 1) * batch]
