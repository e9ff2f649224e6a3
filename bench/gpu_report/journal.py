"""The file of a report: its rows, and a line about each of its jobs."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.machine import NO_COMMIT, commit, versions
from bench.row import BenchRow, Finding, Record, read_records, save_lines
from bench.timing import Budget
from engine.gpu.driver import find_gpu
from lddgan.errors import LddganError
from lddgan.progress import Log

UNFINISHED: Final = "its process ended before it was done"
LIMIT: Final = "limit_seconds"  # found of a job that is not done yet
MOST: Final = 3600.0  # seconds for one job
DRY: Final = "a dry run has no GPU"


class Job(NamedTuple):
    """Something to measure, named by its stage and what it is."""

    stage: str
    what: str
    needs: float  # seconds on an H100, roughly: with less left it does not begin
    run: Callable[[float], dict[str, Any]]  # within these seconds; what it found
    after: str | None = None  # what of the same stage it cannot do without
    why_not: str | None = None  # why it is not even begun


class Site(NamedTuple):
    """What makes a line one of this report: the code, the GPU and the versions."""

    commit: str
    gpu: str | None  # as the driver describes it
    versions: dict[str, str]

    @classmethod
    def here(cls, *, dry: bool) -> Site:
        return cls(commit() or NO_COMMIT, None if dry else find_gpu().description, versions())


class Journal:
    """One file, written whole after every change. Raises BadInput if it holds something else."""

    def __init__(self, path: Path, site: Site) -> None:
        self.path, self.site = path, site
        self.records: list[Record] = read_records(path) if path.exists() else []

    def about(self, stage: str, what: str) -> Finding | None:
        """The line about a job at this site."""
        for record in self.findings():
            if (record.stage, record.what) == (stage, what):
                return record
        return None

    def findings(self) -> list[Finding]:
        """The lines about jobs at this site."""
        return [
            record
            for record in self.records
            if isinstance(record, Finding)
            and (record.commit, record.gpu, record.versions) == self.site
        ]

    def since(self, started: str) -> list[Finding]:
        """The lines about jobs that were tried since then."""
        return [one for one in self.findings() if one.date >= started]

    def rows(self) -> list[BenchRow]:
        return [record for record in self.records if isinstance(record, BenchRow)]

    def add(self, row: BenchRow, instead_of: BenchRow | None = None) -> None:
        self.records = [one for one in self.records if one is not instead_of] + [row]
        self.save()

    def put(self, finding: Finding) -> None:
        """Write down what came of a job, in the place of what was said of it before."""
        old = self.about(finding.stage, finding.what)
        self.records = [record for record in self.records if record is not old] + [finding]
        self.save()

    def save(self) -> None:
        save_lines(self.records, self.path)

    def reread(self) -> None:
        """Take in what other processes wrote."""
        self.records = read_records(self.path) if self.path.exists() else []


def attempt(
    job: Job,
    journal: Journal,
    budget: Budget,
    started: str,
    log: Log,
    watched: Callable[[float], AbstractContextManager[object]],
) -> None:
    """Do a job unless it is done, was tried since `started`, or cannot be; write down what came.

    It may take half of the time that is left, or what it needs, and runs within `watched(seconds)`.
    """
    known, title = journal.about(job.stage, job.what), f"{job.stage}: {job.what}"
    if known is not None and known.why_not is None:
        log(f"{title}: measured before")
        return
    if known is not None and known.date >= started:
        return
    why_not = why_it_cannot_be(job, journal, budget)
    if why_not is not None:
        journal.put(line(job, journal.site, {}, why_not))
        log(f"{title}: not measured: {why_not}")
        return
    limit = min(MOST, max(job.needs, budget.left / 2))
    begun = line(job, journal.site, {LIMIT: limit}, UNFINISHED)
    journal.put(begun)
    log(title)
    found: dict[str, Any] = {}
    clock = time.perf_counter()
    try:
        with watched(limit):
            found = job.run(limit)
    except LddganError as error:
        why_not = str(error)
    journal.reread()  # a command of lddgan may have added its row
    ended = {"found": found, "why_not": why_not, "seconds": round(time.perf_counter() - clock, 1)}
    journal.put(begun.model_copy(update=ended))
    log(f"{title}: {'not measured: ' + why_not if why_not else in_short(found)}")


@contextmanager
def ended_after(limit: float) -> Iterator[None]:
    """Ends this process, whatever it hangs in, with a traceback on stderr."""
    faulthandler.dump_traceback_later(limit, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def line(job: Job, site: Site, found: dict[str, Any], why_not: str | None) -> Finding:
    """What is said of a job now."""
    return Finding(
        date=datetime.now(UTC).isoformat(),
        commit=site.commit,
        gpu=site.gpu,
        versions=site.versions,
        stage=job.stage,
        what=job.what,
        seconds=None,
        found=found,
        why_not=why_not,
    )


def why_it_cannot_be(job: Job, journal: Journal, budget: Budget) -> str | None:
    """Why a job is not begun."""
    if job.why_not is not None:
        return job.why_not
    before = None if job.after is None else journal.about(job.stage, job.after)
    if before is not None and before.why_not is not None:
        return f"{before.what}: {before.why_not}"
    if budget.left < job.needs:
        return f"{max(0, budget.left):.0f} s left, {job.needs:.0f} needed"
    return None


def in_short(found: dict[str, Any]) -> str:
    """What was found, on one line."""
    said = {name: value for name, value in found.items() if not isinstance(value, dict | list)}
    return ", ".join(f"{name} {value}" for name, value in said.items()) or "done"


def seconds_since(date: str) -> float:
    """Since a date in ISO 8601."""
    return (datetime.now(UTC) - datetime.fromisoformat(date)).total_seconds()


def blame(journal: Journal, started: str, why_not: str) -> None:
    """Write down why the job failed that a process has begun since `started`, if there is one."""
    for record in journal.since(started):
        if record.why_not == UNFINISHED:
            took = seconds_since(record.date)
            limit = record.found[LIMIT]
            why_not = f"not done within {limit:.0f} s" if took >= limit else why_not
            ended = {"found": {}, "why_not": why_not, "seconds": round(took, 1)}
            journal.put(record.model_copy(update=ended))
