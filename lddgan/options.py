"""Options that commands share, and what commands print."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lddgan.extras import usable_cores
from lddgan.names import DeviceName
from lddgan.progress import to_stderr
from lddgan.streams import drop_stdout
from lddgan.text import printable

Dataset = Annotated[
    str | None,
    typer.Option(
        help="A model of `lddgan presets`; emoji and digits ship trained. Without it: the "
        "newest bundle under exports/, or emoji."
    ),
]
Key = Annotated[
    list[str] | None,
    typer.Option("--key", help="Which network of a file that holds several, e.g. ema; repeatable."),
]
Seed = Annotated[int, typer.Option(help="Seed of all randomness, 0..2^63-1.")]
Device = Annotated[DeviceName, typer.Option(help="Where to compute.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def workers_for(images: Path | None, asked: int | None) -> int:
    """Number of processes that read images: `asked`, or a default; 0 for images in memory."""
    if asked is not None:
        return asked
    return 0 if images is None else min(4, usable_cores())


def say(line: str) -> None:
    """Print a line, whatever paths it names."""
    typer.echo(printable(line))


def print_once(line: str, err: bool = False) -> None:
    """Print a line, in the first process alone where several train together."""
    if rank_prefix():
        return
    if err:
        note(line)
        return
    try:
        say(line)
    except BrokenPipeError:  # nobody reads it, and the work is done
        drop_stdout()


def rank_prefix() -> str:
    """What precedes the errors of a process that is not the first of a training: "process 1: "."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank}: "


def warn_of_random_weights() -> None:
    warn("random weights: nobody trained this model; its images mean nothing, it is fit for timing")


def warn(line: str) -> None:
    """Print a line on stderr, red on a terminal unless NO_COLOR is set or TERM is dumb."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    typer.secho(printable(line), fg=typer.colors.RED, err=True, color=False if plain else None)


def note(line: str) -> None:
    to_stderr(line)


def print_json(value: Any) -> None:
    """Print data, or JSON as pydantic writes it: in UTF-8 whatever the terminal's encoding."""
    typer.echo((value if isinstance(value, str) else json.dumps(value, indent=1)).encode())
