"""Text that paths of any bytes are part of: for terminals, JSON and shells."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any
from unicodedata import category


def printable(text: object) -> str:
    r"""A path or other text as one line for every terminal and JSON, with \xe9, \n, \x1b, \u202e.

    Bytes that are not UTF-8 are surrogates in it.  What has become printable stays as it is.
    """
    return "".join(c if c.isprintable() or category(c) == "Zs" else _escape(c) for c in str(text))


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a path
        return f"\\x{code - 0xDC00:x}"
    return f"\\u{code:04x}" if 0x80 <= code <= 0xFF else ascii(char)[1:-1]


def in_json(value: Any) -> Any:
    """The same data, all text in it printable."""
    if isinstance(value, Mapping):
        return {printable(key): in_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [in_json(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def quoted(word: object) -> str:
    """A path or other word as one word of a command line, to be pasted into a shell."""
    text = str(word)
    if printable(text) == text:
        return shlex.quote(text)
    return "$'" + printable(text.replace("\\", r"\\").replace("'", r"\'")) + "'"
