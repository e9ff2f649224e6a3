"""Rows as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from bench.machine import Machine
from bench.roofline import summary
from bench.row import Row
from bench.timing import Trial, seconds
from engine.sampler import equal_parts

Columns = dict[str, Callable[[Row, Any], str]]  # heading -> text of a row and of another one

ABSENT: Final = "-"
WIDTH: Final = 124  # characters of a table, at least, in a file or a pipe too
LONGEST: Final = 1000  # characters of a table, at most
STAGES: Final = dict(zip(Trial._fields, Trial._fields, strict=True)) | {
    "generator": "generator, {steps} steps",
    "end_to_end": "seed to pixels",
}
PEAK_MEMORY: Final = {
    "cpu": "peak memory is the process's, libraries and interpreter included",
    "cuda": "peak memory is what torch allocated on the GPU",
}


# ---- What several tables share ----


def number(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def shown(value: float | None, form: str | None = None) -> str:
    """A value in a format (None: `number`), or ABSENT."""
    if value is None:
        return ABSENT
    return number(value) if form is None else format(value, form)


def over(a: float | None, b: float | None) -> str:
    return ABSENT if a is None or b is None else f"{a / b:.2f}"


def hardware(machine: Machine | None) -> str:
    """What computed: the GPU, or the CPU and its cores."""
    if machine is None:
        return "unknown hardware"
    return machine.gpu.name if machine.gpu else f"{machine.cpu}, {machine.cores} cores"


def engine_name(row: Row) -> str:
    """Engine, precision, and whether the whole was one CUDA graph."""
    return f"{row.engine} {row.precision}" + (", CUDA graph" if row.cuda_graph else "")


def agreement(row: Row) -> str:
    """How near the images are to the baseline's."""
    if row.psnr is None or row.changed is None:
        return ABSENT
    if row.psnr == float("inf"):
        return "all equal"
    levels = f"{row.grey_levels} grey level{'' if row.grey_levels == 1 else 's'}"
    return f"at most {levels}, {row.changed:.2%} of values differ, {row.psnr:.1f} dB"


def verification(row: Row) -> str:
    """What verification measured of the engine."""
    found = row.verification or {}
    if "chain_psnr" not in found:
        return ABSENT
    psnr = float(found["chain_psnr"])  # infinite for equal images
    said = f"{psnr:.1f} dB" if psnr < float("inf") else "equal"
    return said + (", failed" if found.get("why_failed") else "")


def paper_of(row: Row) -> Mapping[str, Any]:
    """The paper's figures of a row's preset; empty if it has none."""
    return row.preset.get("paper") or {}


def way_cells(row: Row, other: Row | None, columns: Columns) -> list[str]:
    """The text of a rung or a variant: its name, then its columns; `other` is compared with."""
    name = row.rung or row.variant or ""
    if row.why_not is not None:
        return [name, "did not run", *[ABSENT] * (len(columns) - 1)]
    return [name, *(text(row, other) for text in columns.values())]


def median(name: str) -> Callable[[Row, Any], str]:
    return lambda row, _: number(row.ms[name].p50) if name in row.ms else ABSENT


def psnr(row: Row) -> str:
    """PSNR of the images against the baseline's, without its unit."""
    return "equal" if row.psnr == float("inf") else shown(row.psnr, ".1f")


def grouped(said: Iterable[tuple[str, str]], whole: int) -> list[str]:
    """Names and sentences -> each sentence once, after its names unless it is about the `whole`."""
    names: dict[str, list[str]] = {}
    for name, sentence in said:
        names.setdefault(sentence, []).append(name)
    return [
        sentence if len(about) == whole else f"{', '.join(about)}: {sentence}"
        for sentence, about in names.items()
    ]


def show(
    title: str,
    columns: Iterable[str],
    lines: Iterable[Sequence[str]],
    sentences: Sequence[str],
    notes: Sequence[str] = (),
) -> None:
    """Write a table, whose first column is text and whose others are numbers, and notes in red."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    out, table = Console(), Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for cells in lines:
        table.add_row(*cells)
    wide = out.options.update(width=LONGEST)  # nothing is cut
    out.width = max(out.width, WIDTH, table.__rich_measure__(out, wide).maximum)
    if title:
        out.print(title, style="italic", markup=False, highlight=False)
    out.print(table)
    for sentence in sentences:
        out.print(sentence, markup=False, highlight=False)
    for note in notes:
        out.print(f"! {note}", style="bold red", markup=False)


# ---- An engine beside the baseline ----


def print_engine(rows: Sequence[Row]) -> None:
    """Write the rows of `bench.run.benchmark`: the engine's, and the baseline's if there is one."""
    first = rows[0]
    title = f"{first.dataset}, {turns(first)}"
    names = (f"{engine_name(row)}\n{row.where}" for row in rows)
    stages = {
        label.format(steps=first.preset["steps"]): partial(percentiles, stage)
        for stage, label in STAGES.items()
    }
    lines = [
        [label, *(text(row) for row in rows)] for label, text in (stages | ENGINE_LINES).items()
    ]
    known = [line for line in lines if set(line[1:]) != {ABSENT}]
    columns = ("ms: p50 / p90 / p99", *names)
    show(title, columns, known, engine_facts(first), first.notes)


def turns(row: Row) -> str:
    """Batch, trials and hardware of a run in turns."""
    asked = "" if row.trials == row.trials_asked else f" of {row.trials_asked}"
    return f"batch {row.batch}, {row.trials}{asked} trials, {hardware(row.machine)}"


def percentiles(stage: str, row: Row) -> str:
    ms = row.ms[stage]
    return " / ".join(map(number, (ms.p50, ms.p90, ms.p99)))


def with_share(value: float | None, share: float | None) -> str:
    return shown(value) + ("" if share is None else f" ({share:.0%})")


ENGINE_LINES: Final[dict[str, Callable[[Row], str]]] = {
    "whole, mean ± std": lambda row: (
        f"{number(row.ms['whole'].mean)} ± {number(row.ms['whole'].std)}"
    ),
    "images/s": lambda row: number(row.images_per_second),
    "times as fast": lambda row: shown(row.ratio),
    "images at once": lambda row: str(equal_parts(row.batch, row.chunk or row.batch)[0]),
    "peak memory, MiB": lambda row: shown(row.peak_memory_mib, ",.0f"),
    "GPU memory in use when warm, all processes, MiB": (
        lambda row: shown(row.gpu_memory_mib, ",.0f")
    ),
    "TFLOP/s": lambda row: with_share(row.tflops(), row.share_of("matmul_tflops")),
    "GB/s, at least": lambda row: with_share(row.gb_per_second, row.share_of("copy_gb_per_second")),
}


def engine_facts(row: Row) -> list[str]:
    """Sentences under the table of an engine."""
    said = []
    if row.baseline_ms is not None:
        said.append(f"images against PyTorch: {agreement(row)}")
        said.append(
            "peak memory is the process's; PyTorch's was read with the engine loaded beside it"
        )
    if paper := paper_of(row):
        said.append(
            f"paper ({paper['source']}): {paper['seconds']} s for a batch of 100 on its GPU"
        )
    if row.png_ms is not None:
        said.append(f"PNG files of the batch: {number(row.png_ms)} ms more, on one core")
    if verification(row) != ABSENT:
        said.append(f"verification: {verification(row)}")
    if row.facts:
        facts = ", ".join(f"{name} {value}" for name, value in row.facts.items())
        said.append(f"{row.engine}: {facts}")
    if row.ceilings is not None and row.ceilings.note is None:
        said.append(summary(row.ceilings))
    gpu = row.machine.gpu if row.machine else None
    if gpu is not None and gpu.temperature is not None:
        said.append(
            f"GPU at work: {gpu.sm_clock} of {gpu.sm_clock_max}, {gpu.power_draw} of "
            f"{gpu.power_limit}, {gpu.temperature} C"
        )
    return said


# ---- Several models ----


COMPARED: Final[Columns] = {  # of a model and of the first
    "engine": lambda row, _: engine_name(row),
    "T": lambda row, _: str(row.preset["steps"]),
    "generator\nms": median("generator"),
    "decoder\nms": median("decoder"),
    "whole\nms": median("whole"),
    "images/s": lambda row, _: number(row.images_per_second),
    "times\nthe first": lambda row, first: over(first.whole_ms, row.whole_ms),
    "paper\ns/100": lambda row, _: shown(paper_of(row).get("seconds"), ".2f"),
    "paper, times\nthe first": lambda row, first: over(
        *(paper_of(one).get("seconds") for one in (first, row))
    ),
    "in": lambda row, _: paper_of(row).get("source", ABSENT),
}


def print_compared(rows: Sequence[Row]) -> None:
    """Write the rows of `bench.compare.compare`, a line for each model."""
    first = rows[0]
    lines = [[row.dataset, *(text(row, first) for text in COMPARED.values())] for row in rows]
    notes = grouped(((row.dataset, note) for row in rows for note in row.notes), len(rows))
    said = ["times the first: times as fast as the first model; paper: on its GPU, batch 100"]
    show(f"{turns(first)}; medians, in turns", ("model", *COMPARED), lines, said, notes)


# ---- A ladder ----


LADDER: Final[Columns] = {  # of a rung and of the last one that ran before it
    "ms": lambda row, _: number(row.whole_ms),
    "seed to\npixels": lambda row, _: number(row.ms["end_to_end"].p50),
    "images/s": lambda row, _: number(row.images_per_second),
    "times\nbaseline": lambda row, _: shown(row.ratio, ".2f"),
    "times\nbefore": lambda row, before: over(row.ratio, before.ratio if before else None),
    "TFLOP/s": lambda row, _: shown(row.tflops()),
    "of\nproduct": lambda row, _: shown(row.share_of("matmul_tflops"), ".0%"),
    "of\nconv.": lambda row, _: shown(row.share_of("convolution_tflops"), ".0%"),
    "GB/s at\nleast": lambda row, _: shown(row.gb_per_second),
    "PSNR\ndB": lambda row, _: psnr(row),
    "trials": lambda row, _: str(row.trials),
}


def ladder_lines(rows: Sequence[Row]) -> list[list[str]]:
    """The text of all rungs: the name, then in the order of LADDER."""
    lines, before = [], None
    for row in rows:
        lines.append(way_cells(row, before, LADDER))
        before = row if row.why_not is None else before
    return lines


def ladder_title(row: Row) -> str:
    """Model, batch and hardware of a ladder."""
    return (
        f"{row.dataset}, batch {row.batch}, {hardware(row.machine)}; medians, each rung in turns "
        f"with the baseline for at most {seconds(row.max_seconds or 0)}"
    )


def print_ladder(rows: Sequence[Row]) -> None:
    """Write the rows of `bench.ladder.run_ladder`."""
    first = rows[0]
    said = [summary(first.ceilings)] if first.ceilings else []
    said += [f"{row.rung}: did not run: {row.why_not}" for row in rows if row.why_not]
    show(ladder_title(first), ("rung", *LADDER), ladder_lines(rows), said, first.notes)


# ---- Training steps ----


def step_ms(row: Row) -> float:
    """Milliseconds of a training step: the medians, weighted by how often R1 comes."""
    if "with_r1" not in row.ms:
        return row.ms["plain"].p50
    with_r1, every = row.ms["with_r1"].p50, row.preset["training"]["r1_every"]
    plain = row.ms["plain"].p50 if "plain" in row.ms else with_r1
    return float(((every - 1) * plain + with_r1) / every)


def encoded_ms(row: Row) -> float | None:
    """Milliseconds of a step and of the encoding of its images."""
    return step_ms(row) + row.ms["encode"].p50 if "encode" in row.ms else None


STEP: Final[Columns] = {  # of a variant and of eager fp32
    "images/s": lambda row, _: number(row.batch / step_ms(row) * 1e3),
    "times\neager": lambda row, eager: over(step_ms(eager), step_ms(row)),
    "peak\nMiB": lambda row, _: shown(row.peak_memory_mib, ",.0f"),
}
TRIALS: Final[Columns] = {"trials": lambda row, _: str(row.trials)}
TRAINING: Final[dict[str | None, Columns]] = {
    "autoencoder": {"step\nms": lambda row, _: number(step_ms(row))} | STEP | TRIALS,
    "generator": {
        "no R1\nms": median("plain"),
        "R1\nms": median("with_r1"),
        "mean\nms": lambda row, _: number(step_ms(row)),
        **STEP,
        "encode\nms": median("encode"),
        "images/s\n+encode": lambda row, _: shown(
            row.batch / ms * 1e3 if (ms := encoded_ms(row)) else None
        ),
        "times\n+encode": lambda row, eager: over(encoded_ms(eager), encoded_ms(row)),
        "MiB\n+encode": lambda row, _: shown(row.facts.get("encode_peak_mib"), ",.0f"),
        **TRIALS,
    },
}


def print_training(rows: Sequence[Row]) -> None:
    """Write one stage of a training, every variant, eager fp32 first."""
    first = rows[0]
    columns = TRAINING[first.stage]
    lines = [way_cells(row, first, columns) for row in rows]
    title = f"{first.dataset}: the {first.stage}'s step, batch {first.batch}, "
    title += f"{hardware(first.machine)}; medians"
    said = [PEAK_MEMORY[first.device or "cpu"]]
    if first.stage == "generator":
        every = first.preset["training"]["r1_every"]
        said.append(f"mean: of {every} steps, one of which has R1; +encode: without stored latents")
    said += [f"{row.variant}: {row.why_not}" for row in rows if row.why_not]
    notes = tuple(dict.fromkeys(note for row in rows for note in row.notes))
    show(title, ("variant", *columns), lines, said, notes)
