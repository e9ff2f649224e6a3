"""The loop that both stages share: seed, step, show, keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lddgan.data.order import batches
from lddgan.progress import Log, Meter
from lddgan.training.state import Keeper, seed_step

Step = Callable[[Tensor, int], dict[str, float]]  # (indices of the images, step) -> losses


def run_steps(
    name: str,
    stage: int,
    step: Step,
    parts: Callable[[], dict[str, Any]],
    keeper: Keeper,
    *,
    seed: int,
    count: int,
    batch: int,
    total: int,
    log: Log | None,
) -> None:
    """Make the steps of a stage that are left, on batches of `count` images.

    `stage` is part of each step's seed, `parts` gives the state dicts to keep.
    """
    indices = batches(count, batch, seed, keeper.first, total)
    with Meter(name, keeper.first, total, log) as meter:
        for number, index in enumerate(indices, start=keeper.first):
            seed_step(seed, stage, number)
            meter.show(number + 1, step(index, number))
            keeper.keep(number + 1, number + 1 == total, parts)
