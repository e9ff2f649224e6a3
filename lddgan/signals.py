"""Ctrl-C, SIGTERM and SIGHUP: how they end a command, and how long work puts them off.

It imports little: until the command has called `handle`, Ctrl-C is a traceback.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from contextlib import contextmanager

TYPE_CHECKING = False  # that of typing, which takes milliseconds
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Any, Final

ENDING: Final = tuple(  # Windows has no SIGHUP
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
GRACE_SECONDS: Final = 10.0  # for tidying up after a signal


def handle(handler: Any, *numbers: int) -> dict[int, Any]:
    """Call `handler` at the signals `numbers`. Returns the handlers that were there before.

    What this process was told to ignore (SIGHUP, by nohup) stays ignored.  Signals reach the main
    thread alone: in another one nothing is changed.
    """
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    try:
        return {number: signal.signal(number, handler) for number in heard}
    except ValueError:  # not the main thread
        return {}


@contextmanager
def signal_handler(handler: Any, *numbers: int) -> Iterator[dict[int, Any]]:
    """Like `handle`, for a block; yields the handlers that were there before."""
    before = handle(handler, *numbers)
    try:
        yield before
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class StopSignals:
    asked: int | None = None  # number of the signal that asked for a stop


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """The signals of ENDING ask for a stop after the current step; the second ends at once."""
    stop = StopSignals()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = number
        signal.signal(number, before[number])

    with signal_handler(ask, *ENDING) as before:
        yield stop


@contextmanager
def hold_signals() -> Iterator[None]:
    """Deliver signals after the block, and never to processes started in it (Windows: to these)."""
    came: list[int] = []
    # The mask is for these processes: here another thread may take a signal.
    masks = hasattr(signal, "pthread_sigmask")
    with signal_handler(lambda number, frame: came.append(number), *ENDING):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING) if masks else None
        try:
            yield
        finally:
            if before is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for number in came:
        signal.raise_signal(number)


# ---- the whole command ----


class Interrupted(KeyboardInterrupt):
    """Python forgets the exit code of a program where a KeyboardInterrupt itself went by."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Run a command. A signal ends it as KeyboardInterrupt does, without a word; a second at once.

    Raises SystemExit with 128 and the signal's number, whatever the libraries that it went through
    made of the KeyboardInterrupt.  What has not ended after GRACE_SECONDS is ended.
    """
    asked: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        torch = getattr(sys.modules.get("torch"), "__spec__", None)
        if asked or getattr(torch, "_initializing", False):  # its import takes no exception
            exit_at_once(asked[0] if asked else number)
        asked.append(number)
        sys.unraisablehook = lambda told: exit_swallowed(told, number)
        _thread.start_new_thread(exit_later, (number,))  # threading's locks may be held here
        raise Interrupted

    with signal_handler(end, *ENDING):
        try:
            yield
        finally:
            if asked:
                raise SystemExit(128 + asked[0])


def exit_swallowed(told: sys.UnraisableHookArgs, number: int) -> None:
    """Exit if the interrupt came where Python swallows it: in a __del__, in a callback."""
    if told.exc_type is Interrupted:
        exit_at_once(number)


def exit_later(number: int) -> None:
    time.sleep(GRACE_SECONDS)
    exit_at_once(number)


def exit_at_once(number: int, frame: FrameType | None = None) -> None:
    os._exit(128 + number)
