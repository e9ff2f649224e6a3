"""Progress of long work, a bar on a terminal and plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Final, Self

from lddgan.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress

Log = Callable[[str], None]

LINE_SECONDS: Final = 10.0  # between two plain lines
SMOOTHING: Final = 0.98  # of the losses shown


class Meter(AbstractContextManager["Meter"]):
    """Shows, around a loop, what is done of it, smoothed losses, rate and time left."""

    def __init__(
        self, work: str, first: int, total: int, log: Log | None, unit: str = "steps"
    ) -> None:
        self.work, self.first, self.total, self.unit = work, first, total, unit
        self.log: Log = log or to_stderr
        self.done = first
        self.losses: dict[str, float] = {}
        self.started = self.shown = time.monotonic()
        self.bar: Progress | None = None

    def __enter__(self) -> Self:
        if self.log is to_stderr and sys.stderr is not None and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            console = Console(stderr=True)
            if console.is_dumb_terminal:
                return self
            self.bar = progress.Progress(
                "{task.description}",
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                "{task.fields[losses]}",
                progress.TimeRemainingColumn(),
                console=console,
            )
            self.bar.start()
            self.bar.add_task(self.work, completed=self.first, total=self.total, losses="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    @property
    def rate(self) -> float:
        """Steps (or whatever the unit is) per second since the start."""
        return (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)

    @property
    def speed(self) -> str:
        """The rate as text: "12.3 steps/s", or "4.1 s/step" below one per second."""
        rate = self.rate
        if 0 < rate < 1:
            return f"{1 / rate:.1f} s/{self.unit.removesuffix('s')}"
        return f"{rate:.1f} {self.unit}/s"

    def advance(self, count: int) -> None:
        """Show that `count` more are done."""
        self.show(self.done + count, {})

    def follow(self, done: int, total: int) -> None:
        """Show that `done` are done, of a total that is only known now."""
        self.total = total
        self.show(done, {})

    def show(self, done: int, losses: dict[str, float]) -> None:
        """Show that `done` of the total are done; `losses` are those of the last step."""
        for name, value in losses.items():
            past = self.losses.get(name, value)
            self.losses[name] = SMOOTHING * past + (1 - SMOOTHING) * value
        self.done = done
        text = " ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
        if self.bar is not None:
            shown = f"{text} {self.speed}"
            self.bar.update(self.bar.task_ids[0], completed=done, total=self.total, losses=shown)
            return
        now = time.monotonic()
        if now - self.shown >= LINE_SECONDS or done == self.total:
            self.shown = now
            left = (self.total - done) / self.rate if self.rate else 0.0
            self.log(
                f"{self.work}: {done}/{self.total} {self.unit}  {text}  {self.speed}, "
                f"{left // 60:.0f} min {left % 60:02.0f} s left"
            )


def to_stderr(line: str) -> None:
    """Write a line. One that cannot be written is dropped: no log ends the work that it is of."""
    with suppress(OSError, ValueError):  # a full disk, a pipe that nobody reads; a closed file
        if sys.stderr is not None:  # of a daemon
            print(printable(line), file=sys.stderr, flush=True)
