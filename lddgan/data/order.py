"""The order in which images are seen: a function of seed and epoch."""

from __future__ import annotations

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
        raise BadInput(f"{count} images are too few: one batch takes {batch}")
    return count // batch


class Order:
    """Which images each training step takes, and which of them are mirrored (none unless `flip`).

    Each epoch is shuffled by (seed, epoch); images that do not fill a batch are left out of it.
    """

    def __init__(self, count: int, batch: int, seed: int, flip: bool) -> None:
        self.count, self.batch, self.seed, self.flip = count, batch, seed, flip
        self.per_epoch = batches_per_epoch(count, batch)
        self.epoch = -1  # of what follows
        self.order = self.flips = torch.empty(0)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Indices int64 [batch] of a training step, and whether each is mirrored, bool [batch]."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, epoch_order(self.count, self.seed, epoch)
            self.flips = epoch_flips(self.count, self.seed, epoch) & self.flip
        index = self.order[position * self.batch : (position + 1) * self.batch]
        return index, self.flips[index]
