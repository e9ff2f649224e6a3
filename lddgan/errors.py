"""The errors that users see: one sentence each, no traceback; and commands in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lddgan.text import printable, quoted

if TYPE_CHECKING:
    from pydantic import ValidationError


class LddganError(RuntimeError):
    """Something failed although the input was right. Exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # it may name any path


class BadInput(LddganError, ValueError):
    """The input cannot be used. Exit code 2."""


class OutOfMemory(LddganError):
    """The device has too little memory for one request."""


class Stopped(LddganError):
    """A training was stopped and its state saved. Exit code of a program ended by `signal`."""

    def __init__(self, message: str, signal: int | None) -> None:
        super().__init__(message)
        self.signal = signal


def command(*words: object) -> str:
    """A command of lddgan in backticks, its words quoted for the shell."""
    return f"`{' '.join(map(quoted, ('lddgan', *words)))}`"


def why_invalid(error: ValidationError, whole: str) -> str:
    """The first reason why pydantic refused something: "field: reason", or "`whole`: reason"."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or whole
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
