"""The table of benchmark rows in a Markdown file: python -m bench.readme README.md [--check]

Rewrites what stands between the markers from bench/results/*.jsonl beside the file or its folder:
every row after EVERY, the best ones after BEST. With --check nothing is written, and the exit code
is 1 if the file is not up to date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.machine import in_words
from bench.row import RESULTS, Row, kept_rows
from bench.tables import agreement, engine_name, hardware, number, shown, verification
from lddgan.errors import BadInput, LddganError
from lddgan.files import atomic_write
from lddgan.text import printable, quoted

EVERY: Final = "<!-- bench:begin -->"
BEST: Final = "<!-- bench:best -->"
END: Final = "<!-- bench:end -->"
HEADING: Final = (
    "| Model | Batch | On | Engine | ms (PyTorch) | ms (engine) | Times as fast | Images/s "
    "| Trials | Images against PyTorch | Verification |",
    "|---|--:|---|---|--:|--:|--:|--:|--:|---|--:|",
)


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = [*HEADING, *map(markdown_line, rows)]
    if any(row.random_weights for row in rows):
        lines += ["", "\\* random weights: timing only"]
    for settings in sorted({in_words(row.torch_settings) for row in rows if row.torch_settings}):
        lines += ["", settings]
    return "\n".join(lines)


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each kind beside a baseline: GPUs first, by hardware, model and batch."""
    latest: dict[tuple[bool, str, str, int, str], Row] = {}
    for row in sorted(rows, key=lambda row: row.date):
        if row.baseline_ms is not None:
            on_cpu = row.machine is None or row.machine.gpu is None
            place = (on_cpu, hardware(row.machine))
            latest[*place, row.dataset, row.batch, engine_name(row)] = row
    return [latest[key] for key in sorted(latest)]


def best(rows: Sequence[Row]) -> list[Row]:
    """Of the newest rows, the highest ratio of each model, and the highest of all in 8 bits.

    For each hardware; 8 bits are not counted for a model, as their images differ more.
    """
    chosen: dict[tuple[str, str], Row] = {}
    for row in newest(rows):
        place = (hardware(row.machine), "8 bits" if row.precision == "int8" else row.dataset)
        if place not in chosen or (row.ratio or 0) > (chosen[place].ratio or 0):
            chosen[place] = row
    return list(chosen.values())


def markdown_line(row: Row) -> str:
    """One row as a line of the table."""
    cells = (
        row.dataset + (" \\*" if row.random_weights else ""),
        str(row.batch),
        hardware(row.machine),
        engine_name(row),
        shown(row.baseline_ms),
        number(row.whole_ms),
        shown(row.ratio, ".2f"),
        number(row.images_per_second),
        str(row.trials),
        agreement(row),
        verification(row),
    )
    return f"| {' | '.join(cells)} |"


def rewritten(text: str, rows: Sequence[Row]) -> str:
    """`text` with the table between its markers. Raises BadInput unless each is there once."""
    begin, choose = (BEST, best) if BEST in text else (EVERY, newest)
    before, found, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end or begin in rest or END in after:
        raise BadInput(f"the file must hold {begin} and {END}, once each, in this order")
    return f"{before}{begin}\n{markdown(choose(rows))}\n{END}{after}"


def update(path: Path, check: bool) -> int:
    """Bring the table in `path` up to date, or (check) only compare. Returns the exit code."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    folders = [parent / RESULTS for parent in path.resolve().parents[:2]]
    rows = next(filter(None, (kept_rows(folder, "engine") for folder in folders)), None)
    if rows is None:
        raise LddganError(f"{folders[0]} holds no results; `lddgan bench --save` writes them")
    new = rewritten(text, rows)
    if new != text and check:
        again = f"run `python -m bench.readme {quoted(path)}`"
        print(f"{printable(path)} is not what {RESULTS} says; {again}")
        return 1
    if new != text:
        atomic_write(path, new.encode())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check a Markdown file. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    try:
        return update(options.file, options.check)
    except LddganError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1


if __name__ == "__main__":
    sys.exit(main())
