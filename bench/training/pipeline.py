"""How many images a second the data pipeline of a training delivers, with nothing behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from bench.machine import NO_COMMIT, commit, machine, versions
from bench.roofline import Device
from bench.timing import seconds
from bench.training.row import PipelineRow
from engine.timing import Clock
from lddgan.data.images import ImageFiles
from lddgan.data.open_source import open_source
from lddgan.preset import GROUP, Preset
from lddgan.progress import Log
from lddgan.training.ranks import joined
from lddgan.training.settings import Settings


class Flow(NamedTuple):
    """What came out of a pipeline."""

    read: int  # images
    batches: int  # that were timed
    timed: int  # images in them
    seconds: float


def measure_pipeline(
    preset: Preset,
    data: Path,
    device: Device,
    *,
    batch: int | None,
    workers: int,
    trials: int,
    max_seconds: float,
    load: float,
    log: Log = lambda _: None,
) -> PipelineRow:
    """Read batches of the images at `data` as the generator's training does.

    `batch` None: the preset's, or all images if they are fewer.  `trials` batches are timed, or as
    many as come in `max_seconds`.  Raises BadInput if there are no images, or too few for `batch`.
    """
    images = ImageFiles(open_source(data), preset.image_size)
    size = min(preset.training.batch, len(images)) if batch is None else batch
    settings = Settings(out=Path(), workers=workers, on_bad="skip", log=log)  # writes nothing
    first = max(1, workers)  # they come while the workers start, one from each
    with joined(device) as ranks:
        feed = settings.feed(images, ranks, size, GROUP, preset.training.flip)
        flow = count(feed.batches(0, first + trials), first, max_seconds)
    cut = f"{flow.batches} of {trials} batches: more do not fit in {seconds(max_seconds)}"
    again = (
        f"each image was read {flow.read / len(images):.1f} times, so that it was soon in memory"
    )
    where_from = commit()
    said = {
        cut: flow.batches < trials,
        again: flow.read > len(images),
        NO_COMMIT: where_from is None,
    }
    return PipelineRow(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=where_from,
        dataset=preset.name,
        source=str(data),
        images=len(images),
        image_size=preset.image_size,
        batch=size,
        workers=workers,
        read=flow.read,
        bad=len(feed.bad),
        timed=flow.timed,
        seconds=flow.seconds,
        images_per_second=flow.timed / flow.seconds,
        machine=machine(load, None),
        versions=versions(),
        notes=tuple(sentence for sentence, holds in said.items() if holds),
    )


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
