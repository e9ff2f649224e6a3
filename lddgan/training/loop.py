"""The loop that both stages share: seed, step, show, keep, stop."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from types import FrameType, TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lddgan.data.feed import Feed
from lddgan.errors import LddganError, OutOfMemory, Stopped
from lddgan.progress import Meter
from lddgan.training.log import Diary
from lddgan.training.ranks import Ranks
from lddgan.training.settings import Settings
from lddgan.training.state import Keeper, seed_step

GRIDS: Final = 20  # pictures in a run, about
GRID_STEPS: Final = 100  # between two of them, at least
NAMED_IMAGES: Final = 8  # of a batch that went wrong

Losses = dict[str, float]


class Stage(NamedTuple):
    """One of the two trainings."""

    number: int  # of the seeds
    name: str
    group: int  # images of a batch that cannot be parted
    remedy: str  # for too little memory


class Work(NamedTuple):
    """What a stage does."""

    step: Callable[[Tensor, int], Losses]  # (this process's rows, number of the step)
    parts: Callable[[], dict[str, Any]]  # state dicts to keep
    picture: Callable[[], NDArray[np.uint8]]  # [N,H,W,3], how far it is


class NotFinite(Exception):
    """A loss or a gradient that is NaN or infinite; no weight has been changed by it."""


def run_steps(
    stage: Stage,
    work: Work,
    feed: Feed,
    keeper: Keeper,
    settings: Settings,
    ranks: Ranks,
    total: int,
) -> None:
    """Make the steps of a stage that are left of `total`.

    Raises Stopped, after saving, on SIGTERM and Ctrl-C; LddganError naming step and batch where a
    loss or a gradient is not finite; OutOfMemory.
    """
    first = keeper.first
    with (
        Meter(stage.name, first, total, settings.log) as meter,
        Diary(settings.out, stage.name, first, total, writes=ranks.is_first) as diary,
        StopSignals() as stop,
        closing(feed.batches(first, total)) as batches,
    ):
        for number, rows in enumerate(batches, start=first):
            seed_step(settings.seed, stage.number, number)
            try:
                losses = work.step(rows.to(ranks.device, non_blocking=True), number)
            except NotFinite as error:
                raise LddganError(
                    f"training the {stage.name} failed: {error} at step {number}, "
                    f"{batch_in_words(feed, number)}; lower the learning rate or check the images; "
                    + last_good(keeper)
                ) from error
            except torch.OutOfMemoryError as error:
                raise OutOfMemory(
                    f"the GPU has too little memory to train the {stage.name}; {stage.remedy}"
                ) from error
            done = number + 1
            meter.show(done, losses)
            diary.note(number, losses)
            stopped = ranks.any(stop.asked is not None)
            if stopped or done == total or keeper.is_due:
                keeper.keep(done, work.parts())
            if ranks.is_first and is_picture_due(done, total):
                diary.picture(done, work.picture())
            if stopped and done < total:
                raise Stopped(
                    f"stopped after step {done:,} of {total:,}; go on with --resume", stop.asked
                )
        diary.finish()
    bad = ranks.union(feed.bad)
    if bad:
        settings.log(f"{stage.name}: {len(bad)} bad images were skipped")


def is_picture_due(done: int, total: int) -> bool:
    return done == total or done % max(total // GRIDS, GRID_STEPS) == 0


def batch_in_words(feed: Feed, number: int) -> str:
    """Which images a step saw."""
    order = feed.steps.order
    epoch, position = divmod(number, order.per_epoch)
    index = order.at(number)[0][feed.steps.rows].tolist()
    more = ", ..." if len(index) > NAMED_IMAGES else ""
    listed = ", ".join(map(str, index[:NAMED_IMAGES]))
    return f"batch {position} of epoch {epoch} (images {listed}{more})"


def last_good(keeper: Keeper) -> str:
    """Where to go on after a failure."""
    if keeper.kept == 0:
        return "nothing was saved yet"
    return f"the last good state is {keeper.path}, after step {keeper.kept:,}"


def checked(losses: Mapping[str, Tensor], ranks: Ranks) -> Losses:
    """The means of losses over all processes. Raises NotFinite, on every process, if one is not."""
    stacked = torch.stack([loss.detach().float() for loss in losses.values()])
    values = dict(zip(losses, ranks.mean(stacked).tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise NotFinite(f"its loss {name} is {value}")
    return values


def refuse_infinite(parameters: Iterable[nn.Parameter]) -> None:
    """Raise NotFinite for a gradient that is: where each process has the mean, on every one."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    size = float(nn.utils.get_total_norm(gradients))
    if not math.isfinite(size):
        raise NotFinite(f"its gradient is {size}")


class StopSignals:
    """SIGTERM and Ctrl-C ask for a stop after the current step; the second one ends at once."""

    def __init__(self) -> None:
        self.asked: int | None = None  # number of the signal
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        signal.signal(number, self.before[signal.Signals(number)])
