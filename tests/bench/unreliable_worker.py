"""A worker of the GPU report whose jobs crash, hang and fail."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from bench.gpu_report import worker
from bench.gpu_report.__main__ import parser
from bench.gpu_report.journal import Job, Journal, Site, attempt
from bench.row import REPORT
from bench.timing import Budget
from lddgan.errors import LddganError
from lddgan.progress import to_stderr


def crash(_: float) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def hang(_: float) -> dict[str, Any]:
    time.sleep(60)
    return {}


def mistake(_: float) -> dict[str, Any]:
    raise TypeError("one and two")


def refuse(_: float) -> dict[str, Any]:
    raise LddganError("no memory")


def break_gpu(_: float) -> dict[str, Any]:
    """From here on the GPU is of no use to this process."""
    worker.release = unusable
    raise LddganError("an illegal memory access")


def unusable(_: bool) -> None:
    raise RuntimeError("CUDA error: an illegal memory access\nCompile with TORCH_USE_CUDA_DSA")


JOBS = (
    Job("lsun", "crash", 0, crash),
    Job("lsun", "hang", 0, hang),
    Job("lsun", "mistake", 0, mistake),
    Job("lsun", "refusal", 0, refuse),
    Job("lsun", "broken", 0, break_gpu),
    Job("lsun", "process", 0, lambda _: {"pid": os.getpid()}),
    Job("lsun", "the same", 0, lambda _: {"pid": os.getpid()}),
)


def main() -> None:
    options = parser().parse_args()
    journal = Journal(options.out / REPORT, Site.here(dry=True))
    worker.memory_jobs, worker.attempt = (lambda bench, out: list(JOBS)), hurried
    budget = Budget(options.seconds)
    worker.work(journal, options.out, ("lsun",), budget, options.worker, to_stderr, dry=True)


def hurried(job: Job, journal: Journal, budget: Budget, *others: Any) -> None:
    attempt(job, journal, Budget(2.0) if job.what == "hang" else budget, *others)


if __name__ == "__main__":
    main()
