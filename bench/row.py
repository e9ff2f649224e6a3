"""The one row: what every benchmark writes into .jsonl files, their writer and their reader.

A row is one thing that was measured. Rows with the same `session` were measured in one run: an
engine and the PyTorch baseline beside it, several models, the rungs of a ladder, the variants of a
training step. Ratios and rates are computed when a row is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from bench.machine import NO_COMMIT, Machine, commit, in_words, versions
from bench.roofline import Ceilings
from bench.timing import Summary
from lddgan.errors import BadInput, LddganError, why_invalid
from lddgan.files import atomic_write, check_file, in_turn
from lddgan.frozen import Frozen
from lddgan.names import Device, Precision

RESULTS: Final = Path("bench") / "results"  # in the repository
REPORT: Final = "rows.jsonl"  # the file of bench.gpu_report, in a folder per GPU
SCHEMA: Final = 3
BUSY_LOAD: Final = 0.5  # load per core above which the machine was doing something else

Kind = Literal["engine", "compare", "rung", "training", "pipeline", "photos", "job", "serving"]


class Row(Frozen):
    """One line of a result file. Fields that do not apply keep their default and are not written.

    `preset` and `verification` are dictionaries, so that a row stays readable when those change.
    """

    schema_version: Literal[3]
    kind: Kind
    session: str  # when its run began; UTC, ISO 8601
    date: str  # when the row was made
    commit: str | None  # of the code
    versions: dict[str, str]  # Python and the packages that compute
    machine: Machine | None = None
    torch_settings: dict[str, bool] | None = None  # on a GPU: how PyTorch computes fp32
    notes: tuple[str, ...] = ()  # what a reader must know: trials cut, no baseline, ...
    why_not: str | None = None  # why nothing was measured

    # The model and what was asked for
    dataset: str = ""  # the preset's name
    preset: Mapping[str, Any] = {}
    random_weights: bool | None = None  # True: fit for timing only
    device: Device | None = None
    batch: int = 0
    seed: int | None = None
    trials_asked: int | None = None
    max_seconds: float | None = None  # limit on the trials

    # What ran
    engine: str = ""
    precision: Precision | None = None
    where: str = ""  # device and library; of a job: the GPU as its driver describes it
    cuda_graph: bool | None = None  # whether the whole is one launch; None on the CPU
    chunk: int | None = None  # images computed at once, at most
    rung: str | None = None  # of a ladder
    stage: str | None = None  # "generator" or "autoencoder" of a training; stage of a GPU report
    variant: str | None = None  # of a training step; what a job of a GPU report measures
    facts: Mapping[str, Any] = {}  # what else is known, by name

    # What was measured
    trials: int = 0
    ms: Mapping[str, Summary] = {}  # by stage (bench.timing.Trial), or by kind of training step
    baseline_ms: float | None = None  # median of PyTorch's whole in the same turns
    seconds: float | None = None  # that a job took
    # Peak resident memory of the process; an engine's is read before the baseline is loaded.
    peak_memory_mib: float | None = None
    gpu_memory_mib: float | None = None  # in use when this side was warm, by all processes
    png_ms: float | None = None  # encoding the batch as PNGs on one core, after the run

    # Its images against the baseline's of the same noise
    grey_levels: int | None = None  # largest difference
    changed: float | None = None  # share of values that differ
    psnr: float | None = None  # dB; infinite if all are equal
    verification: dict[str, Any] | None = None  # what was measured against PyTorch fp32

    # Work of the batch, of the networks as published
    flop: Mapping[str, int] = {}  # of generator and decoder; empty without torch, which counts
    least_bytes: int | None = None  # weights once per call, inputs and outputs of the graphs
    intensity: Mapping[str, float] = {}  # FLOP per byte of generator and decoder
    ceilings: Ceilings | None = None  # of the device

    @property
    def whole_ms(self) -> float:
        """Median milliseconds of generator and decoder."""
        return self.ms["whole"].p50

    @property
    def images_per_second(self) -> float:
        return self.batch / self.whole_ms * 1e3

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the baseline. Returns None without one."""
        if self.baseline_ms is None or "whole" not in self.ms:
            return None
        return self.baseline_ms / self.whole_ms

    def tflops(self, stage: str = "whole") -> float | None:
        """Rate of a stage: FLOP of the networks as published over the median time."""
        if not self.flop or stage not in self.ms:
            return None
        work = sum(self.flop.values()) if stage == "whole" else self.flop[stage]
        return work / self.ms[stage].p50 / 1e9

    @property
    def gb_per_second(self) -> float | None:
        """The least bytes over the median time, in 10^9 bytes per second."""
        return None if self.least_bytes is None else self.least_bytes / self.whole_ms / 1e6

    def share_of(self, ceiling: str) -> float | None:
        """Share of a ceiling, by its name, that is reached. Returns None if not comparable."""
        copied = ceiling == "copy_gb_per_second"
        rate = self.gb_per_second if copied else self.tflops()
        known: float | None = getattr(self.ceilings, ceiling, None)
        if rate is None or known is None or self.ceilings is None:
            return None
        precision = "fp16" if self.precision == "bf16" else self.precision  # of the same rate
        return rate / known if copied or precision == self.ceilings.precision else None

    def line(self) -> str:
        """The row as JSON."""
        return self.model_dump_json(exclude_defaults=True)


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_row(kind: Kind, session: str, notes: Sequence[str] = (), **fields: Any) -> Row:
    """A row of this code, with the notes that every kind needs after its own."""
    given = {"date": now(), "commit": commit(), "versions": versions()} | fields
    made = Row(schema_version=SCHEMA, kind=kind, session=session, **given)
    return made.model_copy(update={"notes": (*notes, *common_notes(made))})


def common_notes(row: Row) -> list[str]:
    """What a reader must know of the machine, the code and the way that PyTorch computes."""
    notes = []
    load = row.machine.load / row.machine.cores if row.machine else 0.0
    if load > BUSY_LOAD:
        notes.append(f"the machine was busy before the run: {load:.1f} processes per core")
    if row.random_weights:
        notes.append("random weights: timing only")
    if row.commit is None:
        notes.append(NO_COMMIT)
    if row.torch_settings is not None:
        notes.append(in_words(row.torch_settings))
    if row.ceilings is not None and row.ceilings.note is not None:
        notes.append(row.ceilings.note)
    return notes


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file in its order. Raises BadInput naming the line that is not one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(Row.model_validate_json(line))
        except ValidationError as error:
            cause = why_invalid(error, "the line")
            raise BadInput(f"{path}, line {number} is not a benchmark row: {cause}") from error
    return rows


def check_rows_file(path: Path) -> None:
    """Raise LddganError unless rows can be added to `path`. To be called before any is measured."""
    if path.suffix != ".jsonl":
        raise BadInput(f"{path}: rows go to a .jsonl file")
    check_file(path)
    if path.exists():
        read_rows(path)


def write_rows(rows: Sequence[Row], path: Path) -> Path:
    """Write a file of rows, whole or not at all."""
    return atomic_write(path, "".join(f"{row.line()}\n" for row in rows).encode())


def add_rows(rows: Sequence[Row], path: Path) -> Path:
    """Append rows to a file, which several processes may do. Raises BadInput if it holds others."""
    with in_turn(path):
        return write_rows([*(read_rows(path) if path.exists() else []), *rows], path)


def keep_each(rows: Iterable[Row], path: Path) -> list[Row]:
    """Append each row to a file as soon as it exists. Returns all of them."""
    made: list[Row] = []
    for row in rows:
        made.append(row)
        add_rows([row], path)
    return made


def kept_rows(folder: Path, kind: Kind) -> list[Row]:
    """All rows of a kind in the files of a folder and in the reports of GPUs below it."""
    paths = [*sorted(folder.glob("*.jsonl")), *sorted(folder.glob(f"*/{REPORT}"))]
    return [row for path in paths for row in read_rows(path) if row.kind == kind]


def newest_session(path: Path, kind: Kind) -> list[Row]:
    """The rows of the last run of a kind. Raises LddganError if the file holds none."""
    rows = [row for row in read_rows(path) if row.kind == kind] if path.exists() else []
    if not rows:
        raise LddganError(f"{path} holds no rows of the kind '{kind}'")
    last = max(row.session for row in rows)
    return [row for row in rows if row.session == last]


def results_file(dataset: str, device: Device, kind: str) -> Path:
    """Where rows are kept unless told otherwise: bench/results/ladder-lsun-cpu.jsonl"""
    return RESULTS / f"{kind}-{dataset}-{'gpu' if device == 'cuda' else 'cpu'}.jsonl"
