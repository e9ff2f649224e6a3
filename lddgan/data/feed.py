"""What training steps take: in which order, and read ahead by worker processes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lddgan.data.images import Images, OnBad, refuse_bad
from lddgan.errors import BadInput
from lddgan.progress import Log
from lddgan.workers import read_ahead


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
            self.epoch = epoch
            order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            flips = np.random.default_rng([self.seed, epoch, 1]).integers(0, 2, self.count)
            self.order = torch.from_numpy(order)
            self.flips = torch.from_numpy(flips == 1) & self.flip
        index = self.order[position * self.batch : (position + 1) * self.batch]
        return index, self.flips[index]


@dataclass
class Feed:
    """The rows `rows` of each training step's batch; images skipped by `on_bad` are logged once."""

    images: Images
    order: Order
    rows: Tensor
    _: KW_ONLY
    workers: int
    on_bad: OnBad
    log: Log
    pinned: bool = False  # in memory from which a GPU copies
    bad: set[str] = field(default_factory=set)  # images that were skipped

    def batches(self, first: int, last: int) -> Generator[Tensor]:
        """Yield what the steps first..last-1 take, [len(rows),...], as `read_ahead`."""
        read = partial(read_step, self.images, self.order, self.rows)
        with closing(read_ahead(read, range(first, last), self.workers)) as reads:
            for values, bad in reads:
                refuse_bad(bad, self.on_bad)
                for what in dict.fromkeys(bad):
                    if what not in self.bad:
                        self.log(f"skipped: {what}")
                self.bad.update(bad)
                batch = torch.from_numpy(values)
                yield batch.pin_memory() if self.pinned else batch


def read_step(
    images: Images, order: Order, rows: Tensor, step: int
) -> tuple[NDArray[Any], list[str]]:
    """Values and bad images of a step, in NumPy: torch would send a tensor in shared memory."""
    index, mirrored = order.at(step)
    values, bad = images.read(index[rows].tolist(), mirrored[rows].tolist())
    return values.numpy(), bad
