"""Everything that is measured on a GPU, in one file: python -m bench.gpu_report [--quick]

Each measurement is a process of its own and its row is written at once; what is in the file already
is not measured again, so an interrupted report is resumed by the same command.  What cannot be
measured is written down with its reason.  A full report ends with a ladder, in a file of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from pydantic import ValidationError

from bench.child import run_child
from bench.ladder import LadderRow, ladder_file, newest_ladder
from bench.machine import commit, gpu, versions
from bench.report import engine_name, in_short, markdown, number
from bench.row import RESULTS, BenchRow, Record, Skipped, read_records, save_records
from bench.rungs import Workshop, rungs_of
from bench.timing import Budget
from engine.driver import why_no_gpu
from engine.trt.plans import slug
from engine.verification import Verification
from export.bundle import CHECKPOINT, EXPORTS, MANIFEST, open_bundle
from export.graphs import FLOATS, Precision
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
    ("fused", "fp16", True),
    ("torch", "fp16", False),
    ("ort", "fp32", False),
    ("ort", "fp16", False),
    ("torch-compile", "fp16", False),
)
COMPILED_BATCH = 100  # the only one that torch.compile is measured at: it takes minutes
TRIALS = {1: 300, 10: 100, 100: 50}  # by batch
LADDER = CELLS[0]  # the data set and batch that every way to run a model is measured at
QUICK_CELLS = CELLS[:2]
QUICK_ENGINES = (ENGINES[3], ENGINES[2], ENGINES[0])  # no build first: it may take all the time
QUICK_TRIALS = {1: 100, 100: 20}
QUICK_SECONDS = 600.0  # for everything
LIMITS = {  # seconds
    "doctor": 120,
    "export": 3600,
    "build": 3600,
    "verify": 1200,
    "bench": 1200,
    "ladder": 7200,
}
OVERHEAD = 90.0  # seconds of bench's limit for what its --max-seconds does not count
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
    built_for: int  # the batch that TensorRT tunes its engine for, at least `batch`


class Site(NamedTuple):
    """What makes a row one of this report: the code, the GPU and the versions."""

    commit: str | None
    gpu: str
    versions: dict[str, str]


class Verified(NamedTuple):
    """What `lddgan verify` said of an engine."""

    figures: dict[str, Any] | None  # an engine.verification.Verification
    why_failed: str | None


def limit(command: str, budget: Budget) -> float:
    """Seconds for one command of a report."""
    return max(0.0, min(LIMITS[command], budget.left))


def jobs() -> list[Job]:
    """Everything to be measured, in its order."""
    return [
        Job(dataset, batch, *engine, TRIALS[batch], built_for=batch)
        for dataset, batch in CELLS
        for engine in ENGINES
        if engine[0] != "torch-compile" or batch == COMPILED_BATCH
    ]


def quick_jobs() -> list[Job]:
    """What --quick measures; TensorRT builds once, for the largest batch."""
    return [
        Job(dataset, batch, *engine, QUICK_TRIALS[batch], built_for=max(QUICK_TRIALS))
        for engine in QUICK_ENGINES
        for dataset, batch in QUICK_CELLS
    ]


class Reporter:
    """Takes the jobs one after the other. What it prepared, or failed to, it does not try again."""

    def __init__(
        self, out: Path, site: Site, budget: Budget, program: Sequence[str], log: Log = to_stderr
    ) -> None:
        self.out, self.site, self.budget, self.log = out, site, budget, log
        self.program = program
        self.prepared: dict[tuple[str, ...], str | None] = {}
        self.verified: dict[tuple[str, ...], Verified] = {}

    def run(self, todo: Sequence[Job]) -> None:
        """Measure what the file does not hold. Raises BadInput if it holds something else."""
        for position, job in enumerate(todo, start=1):
            title = f"{position} of {len(todo)}: {words(job)}"
            if self.row_of(job) is not None:
                self.log(f"{title}: measured before")
                continue
            self.log(title)
            why_not = self.measure(job)
            self.note(job, why_not)
            self.log(f"not measured: {why_not}" if why_not else self.outcome(job))

    def measure(self, job: Job) -> str | None:
        """Prepare and measure; returns why there is no row."""
        why_not = self.prepare(lambda: preparations(job))
        if why_not is not None:
            return why_not
        verified = self.verify(job)  # bench refuses what failed it
        seconds = max(0.0, limit("bench", self.budget) - OVERHEAD)
        why_not = self.command(bench_command(job, self.out, seconds))
        if why_not is not None:
            return why_not
        row = self.row_of(job)
        if row is None:
            return "the benchmark ran but left no row of this kind beside a PyTorch baseline"
        self.replace(row, with_verification(row, verified))
        return None

    def climb(self) -> str | None:
        """Measure the ladder and draw it, unless it is there; returns why there is none."""
        dataset, batch = LADDER
        why_not = self.prepare(lambda: export_commands(dataset))
        if why_not is not None:
            return why_not
        path = ladder_file(dataset, "cuda")
        bundle = open_bundle(EXPORTS / dataset)
        rungs = len(rungs_of(Workshop(bundle, "cuda", batch, Path())))
        if path.exists() and is_ladder(newest_ladder(path), rungs, self.site):
            self.log(f"the ladder of {dataset}, batch {batch}: measured before")
            return None
        return self.command(ladder_command(path), kind="ladder")

    def prepare(self, commands_of: Callable[[], list[tuple[str, ...]]]) -> str | None:
        """Run what must be run before, each once; returns why that failed."""
        try:
            commands = commands_of()
        except BadInput as error:  # a bundle that cannot be read
            return str(error)
        for command in commands:
            if command not in self.prepared:
                self.prepared[command] = self.command(command)
            why_not = self.prepared[command]
            if why_not is not None:
                return f"{command[0]}: {why_not}"
        return None

    def verify(self, job: Job) -> Verified:
        """Verify the engine of a job, once."""
        command = verify_command(job)
        if command not in self.verified:
            with tempfile.TemporaryFile("w+") as said:
                why_failed = self.command(command, said)
                said.seek(0)
                self.verified[command] = Verified(figures_in(said.read()), why_failed)
        return self.verified[command]

    def command(
        self,
        command: tuple[str, ...],
        stdout: IO[str] | int = subprocess.DEVNULL,
        kind: str | None = None,
    ) -> str | None:
        """Run one command of lddgan within the limit of its kind; returns why it failed."""
        seconds = limit(kind or command[0], self.budget)
        if seconds == 0:
            return "the time for the whole report was over"
        self.log(f"  lddgan {' '.join(command)}")
        return run_child((*self.program, *command), seconds, stdout=stdout)

    def records(self) -> list[Record]:
        return read_records(self.out) if self.out.exists() else []

    def row_of(self, job: Job) -> BenchRow | None:
        """The row of a job, if the file holds one."""
        found = [r for r in self.records() if isinstance(r, BenchRow) and fits(r, job, self.site)]
        return found[-1] if found else None

    def replace(self, old: BenchRow, new: BenchRow) -> None:
        save_records([new if one == old else one for one in self.records()], self.out)

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
    if job.engine == "trt":
        sizes = f"1,{job.built_for},{job.built_for}"
        commands.append(("build", *engine_options(job), "--batch", sizes))
    return commands


def export_commands(dataset: str) -> list[tuple[str, ...]]:
    """What makes the bundle hold both precisions: of random weights if there is none.

    Raises BadInput for one that cannot be read.
    """
    folder = EXPORTS / dataset
    if not (folder / MANIFEST).is_file():
        return [("export", "--dataset", dataset, "--precision", "both")]
    if set(FLOATS) <= set(open_bundle(folder).precisions):
        return []
    checkpoint = str(folder / CHECKPOINT)
    return [("export", "--checkpoint", checkpoint, "--precision", "both", "--out", str(folder))]


def verify_command(job: Job) -> tuple[str, ...]:
    """The verification of a job's engine, of the one that is built for it."""
    batch = ("--batch", str(job.built_for)) if job.engine == "trt" else ()
    return ("verify", *engine_options(job), "--device", "cuda", *batch, "--json")


def engine_options(job: Job) -> tuple[str, ...]:
    return ("--dataset", job.dataset, "--engine", job.engine, "--precision", job.precision)


def figures_in(said: str) -> dict[str, Any] | None:
    """The Verification in the last line of what `lddgan verify --json` printed, if it is there."""
    last = said.strip().rpartition("\n")[2]
    try:
        return Verification.model_validate_json(last).model_dump(mode="json")
    except ValidationError:
        return None


def with_verification(row: BenchRow, found: Verified) -> BenchRow:
    """A row with what verification measured, and a note if it failed.

    What TensorRT's plans hold of themselves stays.
    """
    figures = row.engine.verification or found.figures
    engine = row.engine.model_copy(update={"verification": figures})
    failed = () if found.why_failed is None else (f"verify: {found.why_failed}",)
    return row.model_copy(update={"engine": engine, "notes": (*row.notes, *failed)})


def bench_command(job: Job, out: Path, seconds: float) -> tuple[str, ...]:
    """The measurement itself, which takes fewer trials where `seconds` are too few."""
    without_graph = job.engine == "trt" and not job.cuda_graph
    return (
        *("bench", *engine_options(job), "--device", "cuda"),
        *("--batch", str(job.batch), "--trials", str(job.trials)),
        *("--max-seconds", f"{seconds:.0f}"),
        *(("--no-cuda-graph",) if without_graph else ()),
        *("--save", str(out), "--json"),
    )


def ladder_command(path: Path) -> tuple[str, ...]:
    """Every way to run one model, kept in `path` and drawn."""
    dataset, batch = LADDER
    return (
        *("bench", "--dataset", dataset, "--device", "cuda", "--batch", str(batch)),
        *("--ladder", "--plot", "--save", str(path)),
    )


def is_ladder(rows: Sequence[LadderRow], rungs: int, site: Site) -> bool:
    """Whether this is a ladder of LADDER with all its rungs, measured at this site."""
    of = rows[0].site
    gpu = of.machine.gpu
    return (
        len(rows) == rungs
        and (of.dataset, of.batch) == LADDER
        and gpu is not None
        and (of.commit, gpu.name, of.versions) == site
    )


def fits(row: BenchRow, job: Job, site: Site) -> bool:
    """Whether a row is the measurement of a job at this site, with as many trials asked for."""
    return (
        (row.dataset, row.batch, row.engine.engine, row.engine.precision) == job[:4]
        and bool(row.engine.cuda_graph) == job.cuda_graph
        and is_here(row, site)
        and row.trials_asked >= job.trials
        and row.baseline is not None
    )


def is_here(row: BenchRow, site: Site) -> bool:
    """Whether a row was measured by this code on this GPU with these versions."""
    gpu = row.machine.gpu
    return gpu is not None and (row.commit, gpu.name, row.versions) == site


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


def words(one: Job | Skipped) -> str:
    engine = in_short(one.engine, one.precision, one.cuda_graph)
    return f"{one.dataset}, batch {one.batch}, {engine}"


def conclusion(records: Sequence[Record]) -> str:
    """The table of a report, and what is missing in it."""
    rows = [record for record in records if isinstance(record, BenchRow)]
    missing = [record for record in records if isinstance(record, Skipped)]
    lines = [markdown(rows)]
    if missing:
        lines += ["", "Not measured:"]
    lines += [f"- {words(one)}: {one.reason}" for one in missing]
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
    """Doctor, ceilings, every job, the table, the ladder; returns 1 if no row is of this site."""
    site = Site(commit(), gpu().name, versions())
    out = out or RESULTS / f"{slug(site.gpu)}.jsonl"
    budget = Budget(QUICK_SECONDS if quick else float("inf"))
    reporter = Reporter(out, site, budget, program)
    reporter.records()  # a file of something else is refused before anything runs
    for command in ((*program, "doctor"), CEILINGS):
        why_not = run_child(command, limit("doctor", budget), stdout=None)
        if why_not is not None:
            to_stderr(f"{command[-1]}: {why_not}")
    reporter.run(quick_jobs() if quick else jobs())
    records = reporter.records()
    print(conclusion(records))
    print(f"\n{out}: the report")
    no_ladder = None if quick else reporter.climb()
    if no_ladder is not None:
        print(f"no ladder: {no_ladder}")
    rows = [record for record in records if isinstance(record, BenchRow)]
    return 0 if any(is_here(row, site) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
