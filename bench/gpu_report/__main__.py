"""The command line of the report, and the process that watches over the one that measures."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench import gpu_report
from bench.gpu_report.commands import PROGRAM, command_jobs
from bench.gpu_report.journal import DRY, Journal, Site, seconds_since
from bench.machine import COMMIT, NO_COMMIT, run_child
from bench.readme import markdown, newest
from bench.row import REPORT, RESULTS
from bench.timing import Budget
from engine.backends.trt.key import slug
from engine.gpu.driver import why_no_gpu
from lddgan.errors import BadInput, LddganError
from lddgan.extras import require
from lddgan.files import sole_writer
from lddgan.text import printable

IN_MEMORY: Final = (
    *("facts", "noise", "tests", "ceilings"),
    *("lsun", "celeba_256", "cifar10", "kernels", "profile", "compile"),
)
COMMANDS: Final = ("trt", "ort", "ladder")
STAGES: Final = (*IN_MEMORY, *COMMANDS)
WORKER: Final = (sys.executable, "-m", str(__package__))
GRACE_SECONDS: Final = 30.0  # after which a worker that does not end itself is ended


def main(arguments: Sequence[str] | None = None, program: Sequence[str] = PROGRAM) -> int:
    """Make the report. Returns the exit code: 1 without a GPU or if nothing was measured."""
    options = parser().parse_args(arguments)
    if options.commit is not None:
        os.environ[COMMIT] = options.commit  # of every process from here on
    try:
        stages = STAGES if options.only is None else tuple(options.only.split(","))
        unknown = [stage for stage in stages if stage not in STAGES]
        if unknown:
            raise BadInput(f"there is no stage '{unknown[0]}'; there are {', '.join(STAGES)}")
        if set(stages) & set(IN_MEMORY):
            require("torch")
        why_not = None if options.dry else why_no_gpu()
        if why_not is not None:
            raise LddganError(f"{why_not}; --dry tries all of it on a CPU")
        return report(options, stages, program)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except LddganError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python3 -m bench.gpu_report",
        description=gpu_report.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", type=Path, help=f"a folder; default {RESULTS}/<the GPU's name>")
    made.add_argument("--seconds", type=float, default=float("inf"), help="for all of it")
    made.add_argument("--only", help=f"some of {','.join(STAGES)}")
    made.add_argument("--commit", help=f"of a copy without git's history; or {COMMIT}")
    made.add_argument("--dry", action="store_true", help="on a CPU, with tiny models")
    made.add_argument("--worker", help=argparse.SUPPRESS)  # when the report was started
    return made


def report(options: argparse.Namespace, stages: Sequence[str], program: Sequence[str]) -> int:
    """Do every job; as a worker, only the jobs that need no command. Returns the exit code."""
    session = options.worker or datetime.now(UTC).isoformat()
    budget = Budget(options.seconds, gone=seconds_since(session))
    site = Site.here(dry=options.dry)
    if options.dry and options.out is None:
        raise BadInput("a dry run is no result; give it a folder of its own with --out")
    out: Path = (options.out or folder_of(site)).expanduser().resolve()
    with nullcontext() if options.worker else sole_writer(out):
        journal = Journal(out / REPORT, site, session, budget)
        if options.worker:
            from bench.gpu_report.worker import work

            work(journal, stages, dry=options.dry)
            return 0
        if site.commit is None:
            journal.log(NO_COMMIT)
        if set(stages) & set(IN_MEMORY):
            supervise(options, journal)
        for job in command_jobs(journal, program):
            if job.stage in stages:
                journal.attempt(job._replace(why_not=DRY if options.dry else None))
    print(conclusion(journal))
    print(f"\n{printable(journal.path)}: the report")
    return 0 if any(row.why_not is None for row in journal.jobs()) else 1


def folder_of(site: Site) -> Path:
    """Where the results of a GPU are kept: bench/results/nvidia-h100-80gb-hbm3"""
    return RESULTS / slug(site.where.partition(",")[0])


def supervise(options: argparse.Namespace, journal: Journal) -> None:
    """Have a worker do what needs no command; another one goes on where it hung or crashed."""
    out, session = str(journal.path.parent), journal.session
    given = [*WORKER, "--out", out, "--worker", session, "--seconds", str(options.seconds)]
    given += [] if options.only is None else ["--only", options.only]
    given += ["--dry"] if options.dry else []
    while True:
        before = journal.tried()
        limit = max(0.0, journal.budget.left) + GRACE_SECONDS
        why_not = run_child(given, limit, stdout=None)
        journal.reread()
        if why_not is None:
            return
        journal.blame(why_not)
        if journal.tried() == before:
            journal.log(f"the measuring process ended before its first job: {why_not}")
            return


def conclusion(journal: Journal) -> str:
    """The table of a report, and what is missing in it."""
    missing = [
        f"- {row.stage}, {row.variant}: {row.why_not}" for row in journal.jobs() if row.why_not
    ]
    table = markdown(newest([row for row in journal.rows if row.kind == "engine"]))
    return "\n".join([table, "", "Not measured:", *missing]) if missing else table


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the worker is to end as well
    sys.exit(main())
