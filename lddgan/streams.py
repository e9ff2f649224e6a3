"""The standard streams of a command, where one is closed, full, or a pipe that nobody reads."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any


class Lossy(io.FileIO):
    """A file that takes everything and drops what it cannot write."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


def open_streams() -> None:
    """Open those that are closed on the null device, and make stderr a log: it ends no work.

    What their encodings lack they show as \\xe9.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: its own
            setattr(sys, name, os.fdopen(null, "w" if number else "r"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does
    if os.name == "posix":  # Windows writes to its console in another way
        file = io.BufferedWriter(Lossy(sys.stderr.fileno(), "w", closefd=False))
        kind = sys.stderr.encoding, sys.stderr.errors
        sys.stderr = io.TextIOWrapper(file, *kind, line_buffering=True)


def drop_stdout() -> None:
    """Drop what stdout does not take. At exit it would be a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # it is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
