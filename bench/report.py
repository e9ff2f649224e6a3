"""Benchmark rows as tables: python -m bench.report README.md [--check]

Rewrites what stands between the markers in a Markdown file from bench/results/*.jsonl beside it;
with --check nothing is written and the exit code is 1 if the file is not up to date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.machine import Machine, in_words
from bench.roofline import Achieved, summary
from bench.row import RESULTS, BenchRow, Measured, StageTimes, read_results
from bench.timing import Summary
from engine.sampler import equal_parts
from lddgan.errors import BadInput, LddganError
from lddgan.files import atomic_write

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
STAGES = {
    "generator": "generator, {nfe} steps",
    "decoder": "decoder",
    "whole": "whole",
    "noise": "noise",
    "download": "download",
    "end_to_end": "seed to pixels",
}
ABSENT = "-"


def print_row(row: BenchRow) -> None:
    """Write a row's table to standard output."""
    from rich.console import Console

    Console().print(render(row))


def render(row: BenchRow) -> Group:
    """A row for people: engine beside PyTorch, and what must be known of the numbers."""
    from rich.console import Group
    from rich.text import Text

    warnings = [Text(f"! {note}", style="bold red") for note in row.notes]
    return Group(_table(row), *(Text(line) for line in facts(row)), *warnings)


def _table(row: BenchRow) -> Table:
    from rich.table import Table

    table = Table(title=title(row), title_justify="left", caption_justify="left")
    table.add_column("ms: p50 / p90 / p99")
    table.add_column(_heading(row.engine), justify="right")
    table.add_column(_heading(row.baseline), justify="right")
    for stage, label in STAGES.items():
        table.add_row(
            label.format(nfe=row.nfe),
            _percentiles(row.engine.times, stage),
            _percentiles(row.baseline.times, stage) if row.baseline else ABSENT,
            end_section=stage in ("whole", "end_to_end"),
        )
    for label, *cells in comparisons(row):
        table.add_row(label, *cells)
    return table


def title(row: BenchRow) -> str:
    asked = "" if row.trials == row.trials_asked else f" of {row.trials_asked}"
    where = hardware(row.machine)
    return f"{row.dataset}, batch {row.batch}, {row.trials}{asked} trials, {where}"


def hardware(machine: Machine) -> str:
    """What computed: the GPU, or the CPU and its cores."""
    if machine.gpu is not None:
        return machine.gpu.name
    return f"{machine.cpu}, {machine.cores} cores"


def comparisons(row: BenchRow) -> list[tuple[str, str, str]]:
    """The lines under the stages: (label, engine, PyTorch)."""
    sides = (row.engine, row.baseline)

    def line(label: str, cells: list[str]) -> tuple[str, str, str]:
        return label, cells[0], cells[1]

    lines = [
        line("whole, mean ± std", [_mean(s.times.whole) if s else ABSENT for s in sides]),
        line("images/s", [number(s.images_per_second) if s else ABSENT for s in sides]),
        line(
            "times as fast",
            [number(row.ratio) if row.ratio else ABSENT, "1" if row.baseline else ABSENT],
        ),
        line(
            "images at once",
            [str(equal_parts(row.batch, s.chunk)[0]) if s else ABSENT for s in sides],
        ),
        line("peak memory, MiB", [_memory(s.peak_memory_mib) if s else ABSENT for s in sides]),
        line(
            "GPU memory in use when warm, all processes, MiB",
            [_memory(s.gpu_memory_mib) if s else ABSENT for s in sides],
        ),
        line("TFLOP/s", [_tflops(s.achieved) if s else ABSENT for s in sides]),
        line("GB/s, at least", [_bytes(s.achieved) if s else ABSENT for s in sides]),
    ]
    return [one for one in lines if one[1:] != (ABSENT, ABSENT)]


def facts(row: BenchRow) -> list[str]:
    """Sentences under the table."""
    said = []
    if row.agreement is not None:
        said.append(f"images against PyTorch: {agreement(row)}")
    if row.baseline is not None:
        said.append(
            "peak memory is the process's; PyTorch's was read with the engine loaded beside it"
        )
    if row.paper_seconds is not None:
        said.append(
            f"paper ({row.paper_source}): {row.paper_seconds} s for a batch of 100 on its GPU"
        )
    if row.png_ms is not None:
        said.append(f"PNG files of the batch: {number(row.png_ms)} ms more, on one core")
    said += [f"verification: {verification(row)}"] if verification(row) != ABSENT else []
    return said + gpu_facts(row)


def gpu_facts(row: BenchRow) -> list[str]:
    """Sentences about the GPU: its state, its ceilings, the plan."""
    said = []
    if row.engine.plan is not None:
        facts = ", ".join(f"{name} {value}" for name, value in row.engine.plan.items())
        of_trt = row.engine.engine.startswith("trt")
        said.append(f"{'TensorRT plan' if of_trt else row.engine.engine}: {facts}")
    if row.ceilings is not None and row.ceilings.note is None:
        said.append(summary(row.ceilings))
    gpu = row.machine.gpu
    if gpu is not None and gpu.temperature is not None:
        said.append(
            f"GPU at work: {gpu.sm_clock} of {gpu.sm_clock_max}, {gpu.power_draw} of "
            f"{gpu.power_limit}, {gpu.temperature} C"
        )
    return said


def verification(row: BenchRow) -> str:
    """What verification measured of what ran.

    The export measures graphs by ONNX Runtime on a CPU, which says nothing of other engines.
    """
    by_export = row.engine.engine == "ort" and row.device == "cpu"
    found = row.engine.verification or (row.verification if by_export else {})
    if "chain_psnr" not in found:
        return ABSENT
    psnr = float(found["chain_psnr"])  # infinite for equal images
    shown = f"{psnr:.1f} dB" if psnr < float("inf") else "equal"
    return shown + (", failed" if found.get("why_failed") else "")


def agreement(row: BenchRow) -> str:
    """How near the engine's images are to the baseline's."""
    found = row.agreement
    if found is None:
        return ABSENT
    if found.psnr is None:
        return "all equal"
    levels = f"{found.grey_levels} grey level{'' if found.grey_levels == 1 else 's'}"
    return f"at most {levels}, {found.changed:.2%} of values differ, {found.psnr:.1f} dB"


def number(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _heading(side: Measured | None) -> str:
    return f"{engine_name(side)}\n{side.where}" if side else "PyTorch"


def _percentiles(times: StageTimes, stage: str) -> str:
    found: Summary = getattr(times, stage)
    return " / ".join(number(value) for value in (found.p50, found.p90, found.p99))


def _mean(found: Summary) -> str:
    return f"{number(found.mean)} ± {number(found.std)}"


def engine_name(side: Measured) -> str:
    """Engine, precision, and whether the whole was one CUDA graph."""
    return in_short(side.engine, side.precision, side.cuda_graph)


def in_short(engine: str, precision: str, cuda_graph: bool | None) -> str:
    return f"{engine} {precision}" + (", CUDA graph" if cuda_graph else "")


def _memory(mib: float | None) -> str:
    return ABSENT if mib is None else f"{mib:,.0f}"


def _tflops(found: Achieved | None) -> str:
    return ABSENT if found is None else number(found.whole_tflops) + _share(found.matmul_share)


def _bytes(found: Achieved | None) -> str:
    return ABSENT if found is None else number(found.gb_per_second) + _share(found.copy_share)


def _share(of_ceiling: float | None) -> str:
    return "" if of_ceiling is None else f" ({of_ceiling:.0%})"


def markdown(rows: Sequence[BenchRow]) -> str:
    """The newest row of each kind that has a baseline, as a Markdown table."""
    lines = [
        "| Model | Batch | On | Engine | ms (PyTorch) | ms (engine) | Times as fast | Images/s "
        "| Trials | Images against PyTorch | Verification |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|---|--:|",
    ]
    shown = newest(rows)
    lines += [_markdown_line(row) for row in shown]
    if any(row.random_weights for row in shown):
        lines += ["", "\\* random weights: timing only"]
    for settings in sorted({in_words(row.torch_settings) for row in shown if row.torch_settings}):
        lines += ["", settings]
    return "\n".join(lines)


def newest(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """The last row of each kind that has a baseline: GPUs first, by hardware, model and batch."""
    latest: dict[tuple[bool, str, str, int, str], BenchRow] = {}
    for row in sorted(rows, key=lambda row: row.date):
        if row.baseline is not None:
            where = (row.machine.gpu is None, hardware(row.machine))
            latest[*where, row.dataset, row.batch, engine_name(row.engine)] = row
    return [latest[key] for key in sorted(latest)]


def _markdown_line(row: BenchRow) -> str:
    if row.baseline is None or row.ratio is None:
        raise ValueError("a row without the baseline beside it is not a result")
    cells = (
        row.dataset + (" \\*" if row.random_weights else ""),
        str(row.batch),
        hardware(row.machine),
        engine_name(row.engine),
        number(row.baseline.times.whole.p50),
        number(row.engine.times.whole.p50),
        f"{row.ratio:.2f}",
        number(row.engine.images_per_second),
        str(row.trials),
        agreement(row),
        verification(row),
    )
    return f"| {' | '.join(cells)} |"


def rewritten(text: str, table: str) -> str:
    """`text` with `table` between the markers. Raises BadInput if they are not there once each."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise BadInput(f"the file must hold {BEGIN} and {END}, once each, in this order")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check a Markdown file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    try:
        return update(options.file, options.check)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except LddganError as error:
        print(error, file=sys.stderr)
        return 1


def update(path: Path, check: bool) -> int:
    """Bring the table in `path` up to date, or (check) say whether it is: 0 or 1."""
    try:
        text = path.read_text()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    new = rewritten(text, markdown(read_results(path.resolve().parent / RESULTS)))
    if new == text:
        return 0
    if check:
        print(f"{path} is not what {RESULTS} says; run `python -m bench.report {path}`")
        return 1
    atomic_write(path, new.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
