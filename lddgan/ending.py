"""The signals that end a command. It imports little: until it has run, Ctrl-C is a traceback."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # that of typing, which takes milliseconds
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Final

ENDING: Final = tuple(  # Windows has no SIGHUP
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


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


def exit_at_once(number: int, frame: FrameType | None = None) -> None:
    """Exit as a program does that the signal ended."""
    os._exit(128 + number)
