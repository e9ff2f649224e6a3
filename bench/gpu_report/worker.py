"""The process that measures models in memory, one job after the other."""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
from collections.abc import Sequence
from functools import partial
from types import TracebackType

from bench.gpu_report import BATCHES, DATASETS, probes
from bench.gpu_report.cells import Bench, cell_job, cells, compile_job, small
from bench.gpu_report.journal import DRY, Job, Journal, ended_after
from bench.gpu_report.rates import measure_rates
from engine.backends.fused.run import why
from lddgan.presets import get_preset


def work(journal: Journal, stages: Sequence[str], *, dry: bool) -> None:
    """Do the jobs of some stages that were not tried in this session.

    An error that is not one of ours ends the process, and so does a GPU that an earlier error left
    unusable: the next process goes on.
    """
    faulthandler.enable()
    sys.excepthook = end_with_cause
    if dry:
        import torch

        torch.set_num_threads(1)  # networks this small lose much where cores are shared
    for job in memory_jobs(Bench(journal, dry=dry)):
        if job.stage in stages:
            journal.attempt(job, ended_after)
            release(dry)


def memory_jobs(bench: Bench) -> list[Job]:
    """All of them, in their order."""
    dry, full, out = bench.dry, get_preset(DATASETS[0]), bench.journal.path.parent
    preset = small(full) if dry else full
    profiled = f"{DATASETS[0]}, fused, batch {BATCHES[0]}"
    return [
        Job("facts", "machine", 0, partial(probes.facts, dry)),
        Job("noise", "bits", 10, partial(probes.noise, full), why_not=DRY if dry else None),
        Job("tests", "gpu", 60, partial(probes.tests, out, dry)),
        Job("ceilings", "rates", 10, partial(probes.ceilings, preset, bench.device)),
        *(cell_job(bench, cell) for cell in cells()),
        Job("kernels", "rates", 20, partial(measure_rates, bench.device, dry)),
        Job("profile", profiled, 25, partial(probes.profile, bench, out)),
        compile_job(bench),
    ]


def release(dry: bool) -> None:
    """Give back the memory of a job. Raises RuntimeError if the GPU has become unusable here."""
    gc.collect()
    if not dry:
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def end_with_cause(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """End this process at once with the cause as its last line: PyTorch adds advice below it."""
    sys.__excepthook__(kind, error, trace)
    print(f"{kind.__name__}: {why(error)}", file=sys.stderr, flush=True)
    os._exit(1)
