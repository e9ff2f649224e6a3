"""Options that commands share, and how commands speak."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lddgan.names import DeviceName

Dataset = Annotated[
    str | None,
    typer.Option(
        help="cifar10, celeba_256, lsun or digits (the trained model that ships with lddgan). "
        "Without it: the newest bundle under exports/, or digits."
    ),
]
Seed = Annotated[int, typer.Option(help="0..2^63-1.")]
Device = Annotated[DeviceName, typer.Option(help="Where it computes.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]

MOST_WORKERS = 4  # that read images, unless told


def workers_for(images: Path | None, asked: int | None) -> int:
    """Processes that read images; none where the images are in memory."""
    from lddgan.extras import usable_cores

    if asked is not None:
        return asked
    return 0 if images is None else min(MOST_WORKERS, usable_cores())


def tell(line: str, err: bool = False) -> None:
    """Print a line, once where several processes train together."""
    if not which_process():
        typer.echo(line, err=err)


def which_process() -> str:
    """What precedes the errors of a process that is not the first of a training."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank}: "


def warn_of_random_weights() -> None:
    typer.secho(
        "random weights: nobody trained this model; its images mean nothing, it is fit for timing",
        fg=typer.colors.RED,
        err=True,
    )


def note(line: str) -> None:
    typer.echo(line, err=True)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))
