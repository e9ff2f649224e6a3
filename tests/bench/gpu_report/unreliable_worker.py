"""A worker of the GPU report whose jobs crash, hang and fail."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from bench.gpu_report import worker
from bench.gpu_report.__main__ import parser
from bench.gpu_report.journal import Job, Journal, Site
from bench.row import REPORT
from bench.timing import Budget
from lddgan.errors import LddganError


def crash() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def hang() -> dict[str, Any]:
    time.sleep(60)
    return {}


def mistake() -> dict[str, Any]:
    raise TypeError("one and two")


def refuse() -> dict[str, Any]:
    raise LddganError("no memory")


def break_gpu() -> dict[str, Any]:
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
    Job("lsun", "process", 0, lambda: {"pid": os.getpid()}),
    Job("lsun", "the same", 0, lambda: {"pid": os.getpid()}),
)


class Hurried(Journal):
    """Gives the job that hangs two seconds."""

    def attempt(self, job: Job, *watched: Any) -> None:
        patient = self.budget
        self.budget = Budget(2.0) if job.what == "hang" else patient
        super().attempt(job, *watched)
        self.budget = patient


def main() -> None:
    options = parser().parse_args()
    path, budget = options.out / REPORT, Budget(options.seconds)
    journal = Hurried(path, Site.here(dry=True), options.worker, budget)
    worker.memory_jobs = lambda bench: list(JOBS)
    worker.work(journal, ("lsun",), dry=True)


if __name__ == "__main__":
    main()
