"""How many images a second the data pipeline of a training delivers, with nothing behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bench.machine import machine
from bench.roofline import Device
from bench.row import Row, new_row, now
from bench.timing import seconds
from engine.timing import Clock
from lddgan.data.images import ImageFiles
from lddgan.data.open_source import open_source
from lddgan.preset import GROUP, Preset
from lddgan.progress import Log
from lddgan.training.ranks import joined
from lddgan.training.settings import Settings


class Plan(NamedTuple):
    """What one `lddgan bench --train` measures."""

    device: Device
    batch: int | None  # None: that of each stage
    trials: int
    max_seconds: float  # of the trials of each variant; one of each kind is always made
    load: float  # of the machine before


def measure_pipeline(preset: Preset, data: Path, plan: Plan, workers: int, log: Log) -> Row:
    """Read batches of the images at `data` as the generator's training does.

    The batch of a plan without one is the preset's, or all images if they are fewer. Batches are
    timed as the trials of a plan. Raises BadInput for no images, or too few for the batch.
    """
    images = ImageFiles(open_source(data), preset.image_size)
    size = min(preset.training.batch, len(images)) if plan.batch is None else plan.batch
    settings = Settings(out=Path(), workers=workers, on_bad="skip", log=log)  # writes nothing
    first = max(1, workers)  # they come while the workers start, one from each
    with joined(plan.device) as ranks:
        feed = settings.feed(images, ranks, size, GROUP, preset.training.flip)
        sizes, taken = read(feed.batches(0, first + plan.trials), first, plan.max_seconds)
    notes, timed = [], sizes[first:]
    if len(timed) < plan.trials:
        limit = seconds(plan.max_seconds)
        notes.append(f"{len(timed)} of {plan.trials} batches: more do not fit in {limit}")
    if sum(sizes) > len(images):
        times = sum(sizes) / len(images)
        notes.append(f"each image was read {times:.1f} times, so that it was soon in memory")
    facts = {"source": str(data), "images": len(images), "image_size": preset.image_size}
    facts |= {"workers": workers, "bad": len(feed.bad), "read": sum(sizes)}
    facts |= {"timed": sum(timed), "seconds": taken}
    here = machine(plan.load, None)
    more: dict[str, Any] = {"dataset": preset.name, "batch": size, "machine": here, "facts": facts}
    return new_row("pipeline", now(), notes, **more)


def read(
    batches: Iterator[Tensor], first: int, limit: float, clock: Clock = time.perf_counter
) -> tuple[list[int], float]:
    """Take batches until they end or `limit` seconds are over; the `first` ones are not timed.

    Returns the sizes of all, and the seconds of those that were timed.
    """
    started = now = clock()
    sizes: list[int] = []
    for rows in batches:
        sizes.append(len(rows))
        now = clock()
        if len(sizes) <= first:
            started = now
        elif now - started >= limit:
            break
    return sizes, now - started
