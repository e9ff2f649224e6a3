"""What a service asks of its engines and takes from its clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lddgan.errors import BadInput

BATCH: Final = 8  # images computed at once, unless asked otherwise


@dataclass(frozen=True)
class Limits:
    """The options of `lddgan serve`."""

    batch: int  # images computed at once, at most
    wait: float  # seconds that the first image of a batch waits for others
    queue: int  # images that wait, at most
    timeout: float  # seconds for one image
    drain: float  # seconds for what is in flight at SIGTERM
    fast: bool  # any shape: the same to one grey level only
    cache_mb: int
    tokens: tuple[str, ...] = ()  # none: everybody may ask
    access_log: bool = False


def read_tokens(path: Path) -> tuple[str, ...]:
    """The tokens of a file, one a line. Raises BadInput for none, or what no header can hold."""
    try:
        lines = path.read_text("ascii").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read tokens of {path}: {error}") from error
    tokens = tuple(line.strip() for line in lines if line.strip())
    if not tokens or not all(token.isprintable() for token in tokens):
        raise BadInput(f"{path} holds no tokens; give one a line, of printable ASCII letters")
    return tokens
