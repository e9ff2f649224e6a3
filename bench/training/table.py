"""Rows of `lddgan bench --train` for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bench.report import ABSENT, hardware, number
from bench.training.row import Found, PipelineRow, Row, Timed, TrainingRow

if TYPE_CHECKING:
    from rich.table import Table

WIDTH: Final = 120  # characters, at least

Column = Callable[[Found], str]

AUTOENCODER: Final[dict[str, Column]] = {
    "step\nms": lambda found: number(found.step_ms),
    "images/s": lambda found: number(found.images_per_second),
    "times\neager": lambda found: f"{found.ratio:.2f}",
    "peak\nMiB": lambda found: memory(found.measured.peak_memory_mib),
    "trials": lambda found: trials(found.measured.plain),
}
GENERATOR: Final[dict[str, Column]] = {
    "no R1\nms": lambda found: median(found.measured.plain),
    "R1\nms": lambda found: median(found.measured.with_r1),
    "mean\nms": lambda found: number(found.step_ms),
    "images/s": lambda found: number(found.images_per_second),
    "times\neager": lambda found: f"{found.ratio:.2f}",
    "peak\nMiB": lambda found: memory(found.measured.peak_memory_mib),
    "encode\nms": lambda found: median(found.measured.encode),
    "images/s\n+encode": lambda found: or_absent(found.encoded_images_per_second, number),
    "times\n+encode": lambda found: or_absent(found.encoded_ratio, "{:.2f}".format),
    "MiB\n+encode": lambda found: memory(found.measured.peak_encoding_mib),
    "trials": lambda found: trials(found.measured.with_r1),
}
MEMORY: Final = {
    "cpu": "peak memory is the process's, libraries and interpreter included",
    "cuda": "peak memory is what torch allocated on the GPU",
}


def print_training(row: Row) -> None:
    """Write a row to standard output."""
    from rich.console import Console

    console = Console()
    console.width = max(console.width, WIDTH)  # in a file or a pipe too
    if isinstance(row, TrainingRow):
        console.print(title(row), style="italic", markup=False, highlight=False)
        console.print(table(row))
    for line in facts(row):
        console.print(line, markup=False, highlight=False)
    for note in row.notes:
        console.print(f"! {note}", style="bold red", markup=False)


def table(row: TrainingRow) -> Table:
    """One stage, a line for each variant."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    columns = GENERATOR if row.stage == "generator" else AUTOENCODER
    made.add_column("variant", no_wrap=True)
    for heading in columns:
        made.add_column(heading, justify="right", no_wrap=True)
    for result in row.results:
        if result.found is None:
            made.add_row(result.variant.name, "did not run", *[ABSENT] * (len(columns) - 1))
        else:
            made.add_row(result.variant.name, *cells(result.found, columns))
    return made


def cells(found: Found, columns: dict[str, Column]) -> list[str]:
    """One variant's text, in the order of `columns`."""
    return [text(found) for text in columns.values()]


def or_absent(value: float | None, text: Callable[[float], str]) -> str:
    return ABSENT if value is None else text(value)


def memory(mib: float | None) -> str:
    return or_absent(mib, "{:,.0f}".format)


def median(timed: Timed | None) -> str:
    return ABSENT if timed is None else number(timed.ms.p50)


def trials(timed: Timed | None) -> str:
    return ABSENT if timed is None else str(timed.trials)


def title(row: TrainingRow) -> str:
    """Model, stage, batch and hardware."""
    what = "the generator's step" if row.stage == "generator" else "the autoencoder's step"
    return f"{row.dataset}: {what}, batch {row.batch}, {hardware(row.machine)}; medians"


def facts(row: Row) -> list[str]:
    """Sentences under the table; all of a pipeline."""
    if isinstance(row, PipelineRow):
        return [pipeline(row)]
    said = [MEMORY[row.device]]
    if row.r1_every is not None:
        said.append(
            f"mean: of {row.r1_every} steps, one of which has R1; +encode: without stored latents"
        )
    return said + [f"{one.variant.name}: {one.why_not}" for one in row.results if one.why_not]


def pipeline(row: PipelineRow) -> str:
    """The pipeline in one line."""
    readers = f"{row.workers} workers" if row.workers else "no workers"
    return (
        f"{row.dataset}: the data pipeline alone gives {number(row.images_per_second)} images/s of "
        f"{row.image_size}x{row.image_size}, {readers}, batch {row.batch}: {row.timed:,} images in "
        f"{number(row.seconds)} s, from {row.source} ({row.images:,} images, {row.bad:,} bad)"
    )
