"""One benchmark run is one row: a JSON line under bench/results/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bench.machine import Machine
from bench.roofline import Achieved, Ceilings
from bench.timing import Summary
from engine.kept_images import ImagesVerified
from lddgan.errors import BadInput, LddganError, why_invalid
from lddgan.files import atomic_write
from lddgan.frozen import Frozen
from lddgan.names import Precision

RESULTS = Path("bench") / "results"  # in the repository
LADDERS = "ladder-"  # how the names of files of bench/ladder.py begin
T = TypeVar("T")

REPORT = "rows.jsonl"  # the file of bench.gpu_report, in a folder of its GPU
FINDING = '{"kind":"finding"'  # how the line of a Finding begins


class StageTimes(Frozen):
    """The stages of `bench.timing.Trial`."""

    noise: Summary
    generator: Summary
    decoder: Summary
    whole: Summary
    download: Summary
    end_to_end: Summary


class Measured(Frozen):
    """One side: the engine, or the PyTorch baseline."""

    model_config = ConfigDict(ser_json_inf_nan="strings")  # as in BenchRow

    engine: str
    precision: Precision
    where: str  # device and library
    chunk: int  # images computed at once, at most
    times: StageTimes
    images_per_second: float  # batch / p50 of the whole
    # Peak resident memory of the process once this side was warm.  The engine's is read before the
    # baseline is loaded; the baseline's holds both.
    peak_memory_mib: float | None
    # Of schema 2:
    gpu_memory_mib: float | None = None  # in use when this side was warm, by all processes
    cuda_graph: bool | None = None  # whether the whole is one launch; None on the CPU
    plan: dict[str, Any] | None = None  # what it says of itself: profile, level, version, chunk
    verification: dict[str, Any] | None = None  # what verification measured with this plan
    achieved: Achieved | None = None  # None without torch, which counts the multiply-adds


class Agreement(Frozen):
    """The engine's images against the baseline's, all of one batch, from the same noise."""

    grey_levels: int  # largest difference
    changed: float  # share of values that differ
    psnr: float | None  # dB; None if all are equal


class BenchRow(Frozen):
    """One run of `lddgan bench`.

    `preset` and `verification` are kept as they were then: a row stays readable when they change.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    schema_version: Literal[1, 2] = 2
    date: str  # UTC, ISO 8601
    commit: str | None
    dataset: str  # the preset's name
    preset: dict[str, Any]
    random_weights: bool  # fit for timing only
    device: Literal["cpu", "cuda"]
    batch: int
    seed: int
    trials_asked: int
    trials: int  # done, by each side
    nfe: int  # calls of the generator for one image (T)
    engine: Measured
    baseline: Measured | None
    ratio: float | None  # baseline's p50 of the whole / engine's
    agreement: Agreement | None
    verification: dict[str, Any]  # what export measured for this precision
    paper_seconds: float | None  # for a batch of 100, on the paper's GPU
    paper_source: str | None
    machine: Machine
    versions: dict[str, str]
    notes: tuple[str, ...]  # what a reader must know: cut trials, no baseline, ...
    # Of schema 2:
    png_ms: float | None = None  # encoding the batch as PNGs, on one core, after the run
    torch_settings: dict[str, bool] | None = None  # on a GPU: how PyTorch computes fp32
    ceilings: Ceilings | None = None  # of the GPU, measured after the run


class Finding(Frozen):
    """One job of `bench.gpu_report`: what it found apart from rows, or why it found nothing."""

    model_config = ConfigDict(ser_json_inf_nan="strings")  # as in BenchRow

    kind: Literal["finding"] = "finding"  # first in the line: how a reader tells it from a row
    date: str  # UTC, ISO 8601, when it began
    commit: str  # or the sentence that says why it is unknown
    gpu: str | None  # None of a dry run
    versions: dict[str, str]
    stage: str
    what: str  # "batch 100, fused fp16"; with the stage, the job's name
    seconds: float | None  # that it took; None if it did not begin
    found: dict[str, Any]
    why_not: str | None


Record = BenchRow | Finding


def results_file(row: BenchRow) -> Path:
    """Where rows of this kind are kept: bench/results/lsun-cpu.jsonl"""
    return RESULTS / f"{row.dataset}-{row.device}.jsonl"


def record_images(found: ImagesVerified, path: Path) -> None:
    """Put what was found of an engine's images into its newest row of a file.

    Raises BadInput if the file holds no row of that engine, model and precision.
    """
    records, one = read_records(path), found.origin
    kind = (one.dataset, one.engine, one.precision, one.cuda_graph)
    places = [
        place
        for place, row in enumerate(records)
        if isinstance(row, BenchRow)
        and (row.dataset, row.engine.engine, row.engine.precision, row.engine.cuda_graph) == kind
    ]
    if not places:
        raise BadInput(f"{path} holds no row of {one.engine} {one.precision} and {one.dataset}")
    row = records[places[-1]]
    assert isinstance(row, BenchRow)
    engine = row.engine.model_copy(update={"verification": found.model_dump(mode="json")})
    records[places[-1]] = row.model_copy(update={"engine": engine})
    save_lines(records, path)


def save_row(row: BenchRow, path: Path) -> Path:
    """Append `row` to a .jsonl file. Raises BadInput if the file holds something else."""
    return save_lines([*read_records(path), row] if path.exists() else [row], path)


def read_rows(path: Path) -> list[BenchRow]:
    """The rows of a file, in its order. Raises BadInput naming the line that is not one."""
    return [record for record in read_records(path) if isinstance(record, BenchRow)]


def read_records(path: Path) -> list[Record]:
    """The rows and findings of a file, in its order. Raises BadInput like `read_rows`."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    return [_record(path, number, line) for number, line in enumerate(lines, start=1)]


def _record(path: Path, number: int, line: str) -> Record:
    kind: type[Record] = Finding if line.startswith(FINDING) else BenchRow
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        cause = why_invalid(error, "the line")
        raise BadInput(f"{path}, line {number} is not a benchmark row: {cause}") from error


def read_results(folder: Path) -> list[BenchRow]:
    """All rows of a folder, ladders left out. Raises LddganError if there are none."""
    rows = kept_rows(folder)
    if not rows:
        raise LddganError(f"{folder} holds no results; `lddgan bench --save` writes them")
    return rows


def kept_rows(folder: Path) -> list[BenchRow]:
    """All rows of a folder, ladders left out; there may be none."""
    paths = [path for path in sorted(folder.glob("*.jsonl")) if not path.name.startswith(LADDERS)]
    paths += sorted(folder.glob(f"*/{REPORT}"))
    return [row for path in paths for row in read_rows(path)]


def save_lines(rows: Sequence[BaseModel], path: Path) -> Path:
    """Write a .jsonl file of rows, whole or not at all."""
    return atomic_write(path, "".join(f"{row.model_dump_json()}\n" for row in rows).encode())


def read_lines(path: Path, kind: TypeAdapter[T], what: str) -> list[T]:
    """The rows of a .jsonl file, in its order. Raises BadInput naming the line that is not one."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    rows = []
    for place, line in enumerate(lines, start=1):
        try:
            rows.append(kind.validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]["msg"]
            raise BadInput(f"{path}, line {place} is not {what}: {first}") from error
    return rows
