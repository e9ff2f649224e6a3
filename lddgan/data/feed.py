"""Batches for the training steps, read ahead by worker processes."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lddgan.data.images import Images, Read
from lddgan.data.order import Order
from lddgan.errors import BadInput, LddganError
from lddgan.progress import Log

OnBad = Literal["stop", "skip"]
AHEAD = 4  # batches that a worker has ready
SIGNAL_SECONDS = 1.0  # within which the death of a worker is known


class Steps(Dataset[Read | LddganError | OSError]):
    """Item `step`: what is taken of that training step's batch."""

    def __init__(self, images: Images, order: Order, rows: Tensor) -> None:
        self.images, self.order, self.rows = images, order, rows

    def __getitem__(self, step: int) -> Read | LddganError | OSError:
        index, mirrored = self.order.at(step)
        try:
            return self.images.read(index[self.rows].tolist(), mirrored[self.rows].tolist())
        except (LddganError, OSError) as error:  # raised in a worker, it would come as a traceback
            return error


class Feed:
    """The rows `rows` of each training step's batch.

    A bad image raises BadInput, or (`on_bad` "skip") is replaced and told once.
    """

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
        self.steps = Steps(images, order, rows)
        self.workers, self.on_bad, self.log, self.pinned = workers, on_bad, log, pinned
        self.bad: set[str] = set()  # images that were skipped

    def batches(self, first: int, last: int) -> Generator[Tensor]:
        """What the steps first..last-1 take, [len(rows),...]. Raises BadInput, LddganError."""
        loader = DataLoader(
            self.steps,
            batch_size=None,
            sampler=range(first, last),
            num_workers=self.workers,
            prefetch_factor=AHEAD if self.workers else None,
            worker_init_fn=begin_worker,
            pin_memory=self.pinned,
        )
        reading, cause = iter(loader), ""
        try:
            try:
                for read in reading:
                    yield self._checked(read)
            except (EOFError, ConnectionError):  # of a worker killed while it handed a batch over
                time.sleep(SIGNAL_SECONDS)  # PyTorch's own words for it, a RuntimeError
                raise
        except RuntimeError as error:
            if isinstance(error, LddganError) or "worker" not in str(error):
                raise
            cause = first_line(error)
        finally:
            del reading  # ends the workers, also where an exception keeps this frame alive
        if cause:  # outside of the handler: what led to it would keep the workers alive
            raise LddganError(f"reading the images failed: {cause}")

    def _checked(self, read: Read | LddganError | OSError) -> Tensor:
        if isinstance(read, Exception):
            raise read
        self._tell(read.bad)
        return read.values

    def _tell(self, bad: Sequence[str]) -> None:
        for what in bad:
            if self.on_bad == "stop":
                raise BadInput(f"{what}; leave it out, or train with --on-bad skip")
            if what not in self.bad:
                self.bad.add(what)
                self.log(f"skipped: {what}")


def begin_worker(number: int) -> None:
    """A worker leaves signals to the process that started it, and uses one core."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    sys.excepthook = unless_broken_off


def unless_broken_off(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What a worker's threads print, but for a batch that the end of the training left behind."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
