"""The order in which images are seen: a function of seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lddgan.errors import BadInput


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order in which `count` images are seen in one epoch, int64 [count]."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))


def epoch_flips(count: int, seed: int, epoch: int) -> Tensor:
    """Which of `count` images are mirrored in one epoch, bool [count]."""
    return torch.from_numpy(np.random.default_rng([seed, epoch, 1]).integers(0, 2, count) == 1)


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
