"""A journal whose jobs are scripted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.gpu_report.journal import Job, Journal, Site
from bench.timing import Budget
from lddgan.errors import LddganError

SITE = Site("c" * 40, "NVIDIA H100, 580, 81559 MiB", {"torch": "2.11"})
FOREVER = float("inf")


class Notes(Journal):
    """Keeps what was logged; `went` lists the jobs that ran, with their limits."""

    def __init__(self, path: Path, site: Site = SITE, session: str = "3") -> None:
        super().__init__(path, site, session, Budget(FOREVER, lambda: 0.0))
        self.said: list[str] = []
        self.went: list[tuple[str, float]] = []

    def log(self, line: str) -> None:
        self.said.append(line)

    def job(self, what: str, needs: float = 0, why_not: str | None = None, **more: Any) -> Job:
        def run() -> dict[str, Any]:
            self.went.append((what, self.limit))
            if why_not is not None:
                raise LddganError(why_not)
            return {"figure": 1, "table": [1]}

        return Job("lsun", what, needs, run, **more)

    def attempt_all(self, *jobs: Job, left: float = FOREVER) -> None:
        self.budget = Budget(left, lambda: 0.0)
        for job in jobs:
            self.attempt(job)

    def reasons(self) -> dict[str | None, str | None]:
        return {row.variant: row.why_not for row in self.jobs()}
