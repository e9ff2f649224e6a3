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


class Flow(NamedTuple):
    """What came out of a pipeline."""

    read: int  # images
    batches: int  # that were timed
    timed: int  # images in them
    seconds: float


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
        flow = count(feed.batches(0, first + plan.trials), first, plan.max_seconds)
    notes = []
    if flow.batches < plan.trials:
        limit = seconds(plan.max_seconds)
        notes.append(f"{flow.batches} of {plan.trials} batches: more do not fit in {limit}")
    if flow.read > len(images):
        times = flow.read / len(images)
        notes.append(f"each image was read {times:.1f} times, so that it was soon in memory")
    facts = {"source": str(data), "images": len(images), "image_size": preset.image_size}
    facts |= {"workers": workers, "bad": len(feed.bad), "read": flow.read}
    facts |= {"timed": flow.timed, "seconds": flow.seconds}
    here = machine(plan.load, None)
    more: dict[str, Any] = {"dataset": preset.name, "batch": size, "machine": here, "facts": facts}
    return new_row("pipeline", now(), notes, **more)


def count(
    batches: Iterator[Tensor], first: int, limit: float, clock: Clock = time.perf_counter
) -> Flow:
    """Take batches until they end or `limit` seconds are over; the `first` ones are not timed."""
    started = now = clock()
    read = timed = number = 0
    for number, rows in enumerate(batches, start=1):
        read, now = read + len(rows), clock()
        if number <= first:
            started = now
            continue
        timed += len(rows)
        if now - started >= limit:
            break
    return Flow(read, max(0, number - first), timed, now - started)
