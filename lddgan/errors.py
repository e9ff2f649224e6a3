"""The errors a user sees: one sentence each, no traceback."""

from __future__ import annotations


class LddganError(RuntimeError):
    """Something failed although the input was right. The command line exits with 1."""


class BadInput(LddganError, ValueError):
    """What was given cannot be used. The command line exits with 2."""


class OutOfMemory(LddganError):
    """The device has too little memory for what was asked at once."""


class Stopped(LddganError):
    """Somebody stopped a training, whose state was saved. Exits as a program ended by `signal`."""

    def __init__(self, message: str, signal: int | None) -> None:
        super().__init__(message)
        self.signal = signal
