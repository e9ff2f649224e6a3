"""The errors a user sees: one sentence each, no traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


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


def why_invalid(error: ValidationError, whole: str) -> str:
    """Where and why pydantic refused something, the first of its reasons; `whole` is all of it."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or whole
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
