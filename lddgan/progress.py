"""Progress of long work: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Log = Callable[[str], None]

LINE_SECONDS = 10.0  # between two plain lines
SMOOTHING = 0.98  # of the losses shown


class Meter:
    """Shows what is done, smoothed losses, rate and time left of one stage.

    Used as a context manager around its loop; `show` or `advance` is called after each step.
    """

    def __init__(
        self, stage: str, first: int, total: int, log: Log | None, unit: str = "steps"
    ) -> None:
        self.stage, self.first, self.total, self.unit = stage, first, total, unit
        self.log: Log = log or to_stderr
        self.done = first
        self.losses: dict[str, float] = {}
        self.started = self.shown = time.monotonic()
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        if self.log is to_stderr and sys.stderr.isatty():
            self.bar = _bar()
            self.bar.start()
            self.task = self.bar.add_task(
                self.stage, completed=self.first, total=self.total, losses=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    @property
    def rate(self) -> float:
        """Steps (or images) per second since the start."""
        return (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)

    @property
    def speed(self) -> str:
        """The rate in words; of what takes long, how long."""
        rate = self.rate
        if 0 < rate < 1:
            return f"{1 / rate:.1f} s/{self.unit.removesuffix('s')}"
        return f"{rate:.1f} {self.unit}/s"

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self.show(self.done + count, {})

    def follow(self, done: int, total: int) -> None:
        """`done` are done of a total that is only known now."""
        self.total = total
        self.show(done, {})

    def show(self, done: int, losses: dict[str, float]) -> None:
        """`done` of the total are done; `losses` are those of the last step."""
        for name, value in losses.items():
            past = self.losses.get(name, value)
            self.losses[name] = SMOOTHING * past + (1 - SMOOTHING) * value
        self.done = done
        text = " ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
        if self.bar is not None and self.task is not None:
            self.bar.update(
                self.task, completed=done, total=self.total, losses=f"{text} {self.speed}"
            )
            return
        now = time.monotonic()
        if now - self.shown >= LINE_SECONDS or done == self.total:
            self.shown = now
            left = (self.total - done) / self.rate if self.rate else 0.0
            self.log(
                f"{self.stage}: {done}/{self.total} {self.unit}  {text}  {self.speed}, "
                f"{left // 60:.0f} min {left % 60:02.0f} s left"
            )


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
