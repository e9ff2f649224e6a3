"""Importing libraries that may be broken: a sentence, not a traceback."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from lddgan.errors import LddganError

LONGEST_CAUSE: Final = 400  # characters of a library's own words in one sentence


def import_library(package: str, remedy: str) -> Any:
    """Import an installed package. Raises LddganError, with the remedy, if it cannot be loaded."""
    try:
        return import_module(package)
    except (ImportError, OSError) as error:  # most often of the libraries that it binds
        raise LddganError(
            f"{package} is installed but cannot be loaded ({one_line(str(error))}); {remedy}"
        ) from error


def one_line(text: str) -> str:
    """The text of a library's error as part of one sentence."""
    words = " ".join(text.split()).rstrip(".")
    return words if len(words) <= LONGEST_CAUSE else words[:LONGEST_CAUSE] + "..."
