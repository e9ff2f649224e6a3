"""Everything that is measured on a GPU, in one file: python -m bench.gpu_report [--quick]

Each measurement is a process of its own and its row is written at once; what is in the file already
is not measured again, so an interrupted report is resumed by the same command.  What cannot be
measured is written down with its reason.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from bench.child import run_child
from bench.machine import commit, gpu, versions
from bench.report import engine_name, markdown, number
from bench.row import RESULTS, BenchRow, Record, Skipped, read_records, save_records
from engine.driver import why_no_gpu
from export.bundle import CHECKPOINT, EXPORTS, MANIFEST, open_bundle
from export.graphs import PRECISIONS, Precision
from lddgan.errors import BadInput, LddganError
from lddgan.progress import Log, to_stderr

CELLS = (  # data set and batch, the most telling first
    ("lsun", 100),
    ("lsun", 1),
    ("celeba_256", 100),
    ("cifar10", 100),
    ("lsun", 10),
    ("celeba_256", 1),
    ("celeba_256", 10),
    ("cifar10", 1),
    ("cifar10", 10),
)
ENGINES: tuple[tuple[str, Precision, bool], ...] = (  # engine, precision, CUDA graph
    ("trt", "fp16", True),
    ("trt", "fp16", False),
    ("torch", "fp16", False),
    ("ort", "fp32", False),
    ("ort", "fp16", False),
    ("torch-compile", "fp16", False),
)
COMPILED_BATCH = 100  # the only one that torch.compile is measured at: it takes minutes
TRIALS = {1: 300, 10: 100, 100: 50}  # by batch
QUICK_CELLS, QUICK_ENGINES = CELLS[:2], (ENGINES[0], ENGINES[2])
QUICK_TRIALS = {1: 100, 100: 20}
QUICK_SECONDS = 600.0  # for everything
LIMITS = {"doctor": 120, "export": 3600, "build": 3600, "verify": 1200, "bench": 1200}  # seconds
PROGRAM = (sys.executable, "-m", "cli")
CEILINGS = (sys.executable, "-m", "bench.ceilings")


class Job(NamedTuple):
    """One measurement; PyTorch eager fp32 is beside it in its row."""

    dataset: str
    batch: int
    engine: str
    precision: Precision
    cuda_graph: bool
    trials: int

    def __str__(self) -> str:
        graph = ", CUDA graph" if self.cuda_graph else ""
        return f"{self.dataset}, batch {self.batch}, {self.engine} {self.precision}{graph}"


class Site(NamedTuple):
    """What makes a row one of this report: the code, the GPU and the versions."""

    commit: str | None
    gpu: str
    versions: dict[str, str]


class Budget:
    """The time that the whole report may take."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.ends = clock, clock() + seconds

    def limit(self, command: str) -> float:
        """Seconds for one command."""
        return max(0.0, min(LIMITS[command], self.ends - self.clock()))


def jobs(quick: bool) -> list[Job]:
    """Everything to be measured, in its order."""
    trials = QUICK_TRIALS if quick else TRIALS
    return [
        Job(dataset, batch, *engine, trials[batch])
        for dataset, batch in (QUICK_CELLS if quick else CELLS)
        for engine in (QUICK_ENGINES if quick else ENGINES)
        if engine[0] != "torch-compile" or batch == COMPILED_BATCH
    ]


class Reporter:
    """Takes the jobs one after the other. What it prepared, or failed to, it does not try again."""

    def __init__(
        self, out: Path, site: Site, budget: Budget, program: Sequence[str], log: Log = to_stderr
    ) -> None:
        self.out, self.site, self.budget, self.log = out, site, budget, log
        self.program = program
        self.prepared: dict[tuple[str, ...], str | None] = {}

    def run(self, todo: Sequence[Job]) -> None:
        """Measure what the file does not hold. Raises BadInput if it holds something else."""
        for position, job in enumerate(todo, start=1):
            title = f"{position} of {len(todo)}: {job}"
            if self.row_of(job) is not None:
                self.log(f"{title}: measured before")
                continue
            self.log(title)
            why_not = self.measure(job)
            self.note(job, why_not)
            self.log(f"not measured: {why_not}" if why_not else self.outcome(job))

    def measure(self, job: Job) -> str | None:
        """Prepare and measure; returns why there is no row."""
        try:
            commands = preparations(job)
        except BadInput as error:  # a bundle that cannot be read
            return str(error)
        for command in commands:
            why_not = self.prepare(command)
            if why_not is not None and command[0] != "verify":  # bench judges by what verify left
                return f"{command[0]}: {why_not}"
        why_not = self.command(bench_command(job, self.out))
        if why_not is None and self.row_of(job) is None:
            return "the benchmark ran but left no row of this kind beside a PyTorch baseline"
        return why_not

    def prepare(self, command: tuple[str, ...]) -> str | None:
        if command not in self.prepared:
            self.prepared[command] = self.command(command)
        return self.prepared[command]

    def command(self, command: tuple[str, ...]) -> str | None:
        """Run one command of lddgan; returns why it failed."""
        limit = self.budget.limit(command[0])
        if limit == 0:
            return "the time for the whole report was over"
        self.log(f"  lddgan {' '.join(command)}")
        return run_child((*self.program, *command), limit)

    def records(self) -> list[Record]:
        return read_records(self.out) if self.out.exists() else []

    def row_of(self, job: Job) -> BenchRow | None:
        """The row of a job, if the file holds one."""
        found = [r for r in self.records() if isinstance(r, BenchRow) and fits(r, job, self.site)]
        return found[-1] if found else None

    def note(self, job: Job, why_not: str | None) -> None:
        """Write down why a job was skipped; what was said of it before no longer counts."""
        known = self.records()
        kept = [r for r in known if not (isinstance(r, Skipped) and is_of(r, job, self.site))]
        if why_not is not None:
            kept.append(skipped(job, self.site, why_not))
        if kept != known:
            save_records(kept, self.out)

    def outcome(self, job: Job) -> str:
        row = self.row_of(job)
        if row is None or row.baseline is None or row.ratio is None:
            raise LddganError(f"{self.out} changed while it was used; run the report again")
        return (
            f"{engine_name(row.engine)}: {number(row.engine.times.whole.p50)} ms, PyTorch "
            f"{number(row.baseline.times.whole.p50)} ms, {row.ratio:.2f} times as fast"
        )


def preparations(job: Job) -> list[tuple[str, ...]]:
    """The commands of lddgan that a job needs run before it."""
    commands = export_commands(job.dataset)
    model = ("--dataset", job.dataset)
    if job.engine == "trt":
        plan = (*model, "--engine", job.engine, "--precision", job.precision)
        commands.append(("build", *plan, "--batch", f"1,{job.batch},{job.batch}"))
        commands.append(("verify", *plan, "--batch", str(job.batch)))
    return commands


def export_commands(dataset: str) -> list[tuple[str, ...]]:
    """What makes the bundle hold both precisions: of random weights if there is none.

    Raises BadInput for one that cannot be read.
    """
    folder = EXPORTS / dataset
    if not (folder / MANIFEST).is_file():
        return [("export", "--dataset", dataset, "--precision", "both")]
    if set(open_bundle(folder).precisions) == set(PRECISIONS):
        return []
    checkpoint = str(folder / CHECKPOINT)
    return [("export", "--checkpoint", checkpoint, "--precision", "both", "--out", str(folder))]


def bench_command(job: Job, out: Path) -> tuple[str, ...]:
    """The measurement itself."""
    without_graph = job.engine == "trt" and not job.cuda_graph
    return (
        *("bench", "--dataset", job.dataset, "--device", "cuda"),
        *("--engine", job.engine, "--precision", job.precision),
        *("--batch", str(job.batch), "--trials", str(job.trials)),
        *(("--no-cuda-graph",) if without_graph else ()),
        *("--save", str(out), "--json"),
    )


def fits(row: BenchRow, job: Job, site: Site) -> bool:
    """Whether a row is the measurement of a job at this site, with as many trials asked for."""
    here = row.machine.gpu
    return (
        (row.dataset, row.batch, row.engine.engine, row.engine.precision) == job[:4]
        and bool(row.engine.cuda_graph) == job.cuda_graph
        and here is not None
        and (row.commit, here.name, row.versions) == site
        and row.trials_asked >= job.trials
        and row.baseline is not None
    )


def is_of(record: Skipped, job: Job, site: Site) -> bool:
    """Whether a record says why this job was skipped on this GPU."""
    said = (record.dataset, record.batch, record.engine, record.precision, record.cuda_graph)
    return said == job[:5] and record.gpu == site.gpu


def skipped(job: Job, site: Site, why_not: str) -> Skipped:
    return Skipped(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=site.commit,
        gpu=site.gpu,
        dataset=job.dataset,
        batch=job.batch,
        engine=job.engine,
        precision=job.precision,
        cuda_graph=job.cuda_graph,
        reason=why_not,
    )


def slug(gpu_name: str) -> str:
    """A GPU's name as a file name: nvidia-h200"""
    return re.sub(r"[^a-z0-9]+", "-", gpu_name.lower()).strip("-")


def conclusion(records: Sequence[Record]) -> str:
    """The table of a report, and what is missing in it."""
    rows = [record for record in records if isinstance(record, BenchRow)]
    missing = [record for record in records if isinstance(record, Skipped)]
    lines = [markdown(rows)]
    if missing:
        lines += ["", "Not measured:"]
    for one in missing:
        graph = ", CUDA graph" if one.cuda_graph else ""
        what = f"{one.dataset}, batch {one.batch}, {one.engine} {one.precision}{graph}"
        lines.append(f"- {what}: {one.reason}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, program: Sequence[str] = PROGRAM) -> int:
    """Make the report; returns the exit code: 1 without a GPU or any result."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_report", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="lsun only, at most 10 minutes")
    parser.add_argument("--out", type=Path, help="default bench/results/<the GPU's name>.jsonl")
    options = parser.parse_args(arguments)
    why_not = why_no_gpu()
    if why_not is not None:
        print(why_not, file=sys.stderr)
        return 1
    try:
        return report(options.quick, options.out, program)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except LddganError as error:
        print(error, file=sys.stderr)
        return 1


def report(quick: bool, out: Path | None, program: Sequence[str]) -> int:
    """Doctor, ceilings, every job, the table."""
    site = Site(commit(), gpu().name, versions())
    out = out or RESULTS / f"{slug(site.gpu)}.jsonl"
    budget = Budget(QUICK_SECONDS if quick else float("inf"))
    reporter = Reporter(out, site, budget, program)
    reporter.records()  # a file of something else is refused before anything runs
    for command in ((*program, "doctor"), CEILINGS):
        why_not = run_child(command, budget.limit("doctor"), show=True)
        if why_not is not None:
            to_stderr(f"{command[-1]}: {why_not}")
    reporter.run(jobs(quick))
    records = reporter.records()
    print(conclusion(records))
    print(f"\n{out}: the report")
    return 0 if any(isinstance(record, BenchRow) for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
