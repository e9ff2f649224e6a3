"""The file of a report: rows of engines, and a row about each of its jobs."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.machine import commit, versions
from bench.row import Row, new_row, read_rows, write_rows
from bench.timing import Budget
from engine.gpu.driver import find_gpu
from lddgan.errors import LddganError
from lddgan.files import in_turn
from lddgan.progress import to_stderr

UNFINISHED: Final = "its process ended before it was done"
JOB_SECONDS: Final = 3600.0  # for one job, at most
DRY: Final = "a dry run has no GPU"


class Job(NamedTuple):
    """Something to measure, named by its stage and what it is."""

    stage: str
    what: str
    needs: float  # seconds on an H100, roughly: with less left it does not begin
    run: Callable[[], dict[str, Any]]  # returns what it found
    after: str | None = None  # what of the same stage it needs
    why_not: str | None = None  # why it is not begun


class Site(NamedTuple):
    """What makes a row one of this report."""

    commit: str | None
    where: str  # the GPU as its driver describes it
    versions: dict[str, str]

    @classmethod
    def here(cls, *, dry: bool) -> Site:
        return cls(commit(), "" if dry else find_gpu().description or "", versions())


class Journal:
    """One file, written whole after every change, and the jobs that are done for it.

    `session` is when the report was started, in ISO 8601; it is the session of its jobs' rows.
    `limit` is how many seconds the current job may take.
    Raises BadInput if the file holds something else.
    """

    def __init__(self, path: Path, site: Site, session: str, budget: Budget) -> None:
        self.path, self.site, self.session, self.budget = path, site, session, budget
        self.limit = JOB_SECONDS
        self.rows: list[Row] = []
        self.reread()

    def log(self, line: str) -> None:
        to_stderr(f"[{self.budget.elapsed:6.1f}] {line}")

    def reread(self) -> None:
        """Read what other processes wrote."""
        self.rows = read_rows(self.path) if self.path.exists() else []

    def add(self, rows: Sequence[Row], instead_of: Row | None = None) -> None:
        gone = None if instead_of is None else instead_of.line()
        with in_turn(self.path):
            self.reread()  # others may have added theirs
            self.rows = [row for row in self.rows if row.line() != gone] + list(rows)
            write_rows(self.rows, self.path)

    def jobs(self) -> list[Row]:
        """The rows about jobs at this site."""
        jobs = [row for row in self.rows if row.kind == "job"]
        return [row for row in jobs if (row.commit, row.where, row.versions) == self.site]

    def about(self, stage: str, what: str) -> Row | None:
        """The row about a job at this site."""
        found = [row for row in self.jobs() if (row.stage, row.variant) == (stage, what)]
        return found[0] if found else None

    def tried(self) -> list[Row]:
        """The rows about jobs that were tried in this session."""
        return [row for row in self.jobs() if row.session == self.session]

    def put(self, job: Job, **fields: Any) -> None:
        """Write down what came of a job, in the place of what was known of it."""
        fields |= {"stage": job.stage, "variant": job.what, **self.site._asdict()}
        row = new_row("job", self.session, date=datetime.now(UTC).isoformat(), **fields)
        self.add([row], instead_of=self.about(job.stage, job.what))

    def attempt(
        self, job: Job, watched: Callable[[float], AbstractContextManager[object]] | None = None
    ) -> None:
        """Do a job unless it is done, was tried in this session, or cannot be done.

        It may take half of the time that is left, or what it needs, and runs within
        `watched(seconds)`.
        """
        known, title = self.about(job.stage, job.what), f"{job.stage}: {job.what}"
        if known is not None and known.why_not is None:
            self.log(f"{title}: measured before")
            return
        if known is not None and known.session == self.session:
            return
        why_not = self.why_not(job)
        if why_not is not None:
            self.put(job, why_not=why_not)
            self.log(f"{title}: not measured: {why_not}")
            return
        self.limit = min(JOB_SECONDS, max(job.needs, self.budget.left / 2))
        self.put(job, why_not=UNFINISHED, max_seconds=self.limit)
        self.log(title)
        found: dict[str, Any] = {}
        began = time.perf_counter()
        try:
            with watched(self.limit) if watched else nullcontext():
                found = job.run()
        except LddganError as error:
            why_not = str(error)
        seconds = round(time.perf_counter() - began, 1)
        self.reread()  # a command of lddgan may have added its row
        self.put(job, why_not=why_not, facts=found, seconds=seconds)
        flat = {name: value for name, value in found.items() if not isinstance(value, dict | list)}
        done = ", ".join(f"{name} {value}" for name, value in flat.items()) or "done"
        self.log(f"{title}: {'not measured: ' + why_not if why_not else done}")

    def why_not(self, job: Job) -> str | None:
        """Why a job is not begun. Returns None if it can be."""
        if job.why_not is not None:
            return job.why_not
        before = None if job.after is None else self.about(job.stage, job.after)
        if before is not None and before.why_not is not None:
            return f"{before.variant}: {before.why_not}"
        if self.budget.left < job.needs:
            return f"{max(0, self.budget.left):.0f} s left, {job.needs:.0f} needed"
        return None

    def blame(self, why_not: str) -> None:
        """Write down why the job failed that a process of this session had begun, if any."""
        for row in self.tried():
            if row.why_not == UNFINISHED:
                took, limit = seconds_since(row.date), row.max_seconds or 0.0
                why_not = f"not done within {limit:.0f} s" if took >= limit else why_not
                changes = {"why_not": why_not, "seconds": round(took, 1), "max_seconds": None}
                self.add([row.model_copy(update=changes)], instead_of=row)


@contextmanager
def ended_after(limit: float) -> Iterator[None]:
    """End this process after `limit` seconds, whatever it hangs in, with a traceback on stderr."""
    faulthandler.dump_traceback_later(limit, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def seconds_since(date: str) -> float:
    """Seconds since a date in ISO 8601."""
    return (datetime.now(UTC) - datetime.fromisoformat(date)).total_seconds()
