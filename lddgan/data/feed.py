"""What training steps take: in which order, and read ahead by worker processes."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from multiprocessing import AuthenticationError, resource_sharer
from types import TracebackType
from typing import Final, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lddgan.data.images import Images, OnBad, Read, refuse_bad
from lddgan.errors import BadInput, LddganError
from lddgan.progress import Log

T = TypeVar("T")

SIGNAL_SECONDS: Final = 1.0  # within which PyTorch tells of a worker's death
# What taking a batch from a worker raises, in either process, if one of the two breaks off.
BROKEN_OFF: Final = (EOFError, OSError, AuthenticationError)


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


class Feed:
    """The rows `rows` of each training step's batch; images skipped by `on_bad` are logged once."""

    def __init__(
        self,
        images: Images,
        order: Order,
        rows: Tensor,
        *,
        workers: int,
        on_bad: OnBad,
        log: Log,
        pinned: bool = False,
    ) -> None:
        self.images, self.order, self.rows = images, order, rows
        self.workers, self.on_bad, self.log, self.pinned = workers, on_bad, log, pinned
        self.bad: set[str] = set()  # images that were skipped

    def batches(self, first: int, last: int) -> Generator[Tensor]:
        """Yield what the steps first..last-1 take, [len(rows),...], as `read_ahead`."""
        read = partial(read_step, self.images, self.order, self.rows)
        ahead = read_ahead(read, range(first, last), self.workers, pinned=self.pinned)
        with closing(ahead) as reads:
            for values, bad in reads:
                refuse_bad(bad, self.on_bad)
                for what in dict.fromkeys(bad):
                    if what not in self.bad:
                        self.log(f"skipped: {what}")
                self.bad.update(bad)
                yield values


def read_step(images: Images, order: Order, rows: Tensor, step: int) -> Read:
    index, mirrored = order.at(step)
    return images.read(index[rows].tolist(), mirrored[rows].tolist())


class Reads(Dataset[T | LddganError]):
    """What `read(number)` returns, or its error: raised in a worker it would be a traceback."""

    def __init__(self, read: Callable[[int], T]) -> None:
        self.read = read

    def __getitem__(self, number: int) -> T | LddganError:
        try:
            return self.read(number)
        except LddganError as error:
            return error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return LddganError(f"reading the images failed: {where}{error.strerror}")


def read_ahead(
    read: Callable[[int], T], numbers: range, workers: int, *, pinned: bool = False
) -> Generator[T]:
    """Yield `read(number)` in the order of `numbers`, read ahead by `workers` processes (0: here).

    `pinned`: into memory from which a GPU copies.  Close the generator to end the workers.  Raises
    the LddganErrors of `read`, and LddganError if the disk fails or a worker dies.
    """
    loader = DataLoader(
        Reads(read),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=begin_worker,
        pin_memory=pinned,
    )
    reading, cause = iter(loader), ""
    try:
        try:
            for found in reading:
                if isinstance(found, LddganError):
                    raise found
                yield found
        except BROKEN_OFF as error:  # a worker was killed while it handed something over
            cause = f"a worker process broke off ({type(error).__name__}: {error})"
            time.sleep(SIGNAL_SECONDS)  # PyTorch's own words for it, a RuntimeError
    except RuntimeError as error:
        if isinstance(error, LddganError) or "worker" not in str(error):
            raise
        cause = str(error).partition("\n")[0]
    except KeyboardInterrupt as error:
        error.__traceback__ = None  # its frames would keep the workers alive
        raise
    finally:
        del reading  # ends the workers, also where an exception keeps this frame alive
    if cause:  # outside of the handler: what led to it would keep the workers alive
        raise LddganError(f"reading the images failed: {cause}")


def begin_worker(worker: int) -> None:
    """Leave signals to the process that started this worker, and use one core."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    sys.excepthook = hide_broken_off


def hide_broken_off(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an error of a worker, unless multiprocessing has a batch that nobody takes any more."""
    module = trace.tb_frame.f_globals.get("__name__") if trace is not None else None
    if module != resource_sharer.__name__ or not issubclass(kind, BROKEN_OFF):
        sys.__excepthook__(kind, error, trace)
