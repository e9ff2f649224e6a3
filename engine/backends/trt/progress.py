"""How far a build is, and Ctrl-C in it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from engine.backends.trt.library import TensorRT
from lddgan.signals import signal_handler

Progress = Callable[[int, int], None]  # per cent done, 100

DONE: Final = 100  # per cent


@contextmanager
def interrupt_sets(cancelled: threading.Event) -> Iterator[None]:
    """Within it Ctrl-C sets `cancelled`: an exception must not pass through TensorRT's frames."""
    with signal_handler(lambda number, frame: cancelled.set(), signal.SIGINT):
        yield


class Phases:
    """How far a build is, of nested phases that each announce their number of steps.

    A phase runs within one step of its parent; phases that TensorRT runs side by side overlap, so
    the share shown never falls and reaches 100 only at the end.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.shown = -1
        self.open: dict[str, tuple[str | None, int, int]] = {}  # name -> parent, steps, done

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self.open[name] = (parent, max(1, steps), 0)
        self._show(name)

    def step(self, name: str, step: int) -> None:
        if name in self.open:
            parent, steps, _ = self.open[name]
            self.open[name] = (parent, steps, min(step + 1, steps))
            self._show(name)

    def finish(self, name: str) -> None:
        self.open.pop(name, None)

    def _show(self, name: str) -> None:
        share, at, seen = 0.0, name, set[str]()
        while at in self.open and at not in seen:
            seen.add(at)
            parent, steps, done = self.open[at]
            share = min(1.0, (done + share) / steps)
            at = parent or ""
        shown = min(DONE - 1, int(DONE * share))
        if shown > self.shown:
            self.shown = shown
            self.progress(shown, DONE)


def make_monitor(library: TensorRT, progress: Progress, cancelled: threading.Event) -> Any:
    """TensorRT's progress monitor: tells `progress`, and stops the build once cancelled."""
    module: TensorRT = library
    phases, lock = Phases(progress), threading.Lock()

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with lock:
                phases.start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            with lock:
                phases.step(name, step)
            return not cancelled.is_set()

        def phase_finish(self, name: str) -> None:
            with lock:
                phases.finish(name)

    return Monitor()
