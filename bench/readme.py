"""The table of benchmark rows in a Markdown file: python -m bench.readme README.md [--check]

Rewrites what stands between the markers from bench/results/*.jsonl beside the file. With --check
nothing is written, and the exit code is 1 if the file is not up to date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.machine import in_words
from bench.row import RESULTS, Row, kept_rows
from bench.tables import agreement, engine_name, hardware, number, verification
from lddgan.errors import BadInput, LddganError
from lddgan.files import atomic_write

BEGIN: Final = "<!-- bench:begin -->"
END: Final = "<!-- bench:end -->"
HEADING: Final = (
    "| Model | Batch | On | Engine | ms (PyTorch) | ms (engine) | Times as fast | Images/s "
    "| Trials | Images against PyTorch | Verification |",
    "|---|--:|---|---|--:|--:|--:|--:|--:|---|--:|",
)


def markdown(rows: Sequence[Row]) -> str:
    """The newest row of each kind that was measured beside the baseline, as a Markdown table."""
    shown = newest(rows)
    lines = [*HEADING, *map(markdown_line, shown)]
    if any(row.random_weights for row in shown):
        lines += ["", "\\* random weights: timing only"]
    for settings in sorted({in_words(row.torch_settings) for row in shown if row.torch_settings}):
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


def markdown_line(row: Row) -> str:
    """One row as a line of the table. Raises ValueError without a baseline beside it."""
    if row.baseline_ms is None:
        raise ValueError("a row without the baseline beside it is not a result")
    cells = (
        row.dataset + (" \\*" if row.random_weights else ""),
        str(row.batch),
        hardware(row.machine),
        engine_name(row),
        number(row.baseline_ms),
        number(row.whole_ms),
        f"{row.ratio:.2f}",
        number(row.images_per_second),
        str(row.trials),
        agreement(row),
        verification(row),
    )
    return f"| {' | '.join(cells)} |"


def rewritten(text: str, table: str) -> str:
    """`text` with `table` between the markers. Raises BadInput unless each is there once."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise BadInput(f"the file must hold {BEGIN} and {END}, once each, in this order")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def update(path: Path, check: bool) -> int:
    """Bring the table in `path` up to date, or (check) only compare. Returns the exit code."""
    try:
        text = path.read_text()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    folder = path.resolve().parent / RESULTS
    rows = kept_rows(folder, "engine")
    if not rows:
        raise LddganError(f"{folder} holds no results; `lddgan bench --save` writes them")
    new = rewritten(text, markdown(rows))
    if new == text:
        return 0
    if check:
        print(f"{path} is not what {RESULTS} says; run `python -m bench.readme {path}`")
        return 1
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
