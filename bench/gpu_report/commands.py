"""TensorRT, ONNX Runtime and the ladder: jobs that are commands of lddgan, each a process."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from bench.gpu_report import BATCHES, DATASETS
from bench.gpu_report.journal import Job, Journal
from bench.machine import run_child
from bench.row import results_file
from export.bundle import CHECKPOINT, EXPORTS, MANIFEST, open_bundle
from lddgan.errors import LddganError
from lddgan.names import FLOATS, Precision

PROGRAM: Final = (sys.executable, "-m", "lddgan")
HALF: Final[Precision] = "fp16"
TRIALS: Final = {100: 50, 1: 300}  # by batch
NEEDS: Final = {"export": 60.0, "build": 60.0, "bench": 40.0, "ladder": 300.0}  # not yet measured
OVERHEAD_SECONDS: Final = 30.0  # of a benchmark that its --max-seconds does not count


def command_jobs(journal: Journal, program: Sequence[str]) -> list[Job]:
    """All of them, in their order."""

    def call(command_of: Callable[[], str]) -> dict[str, Any]:
        command = command_of()
        if not command:
            return {"said": "there already"}
        journal.log(f"lddgan {command}")
        why_not = run_child((*program, *shlex.split(command)), journal.limit)
        if why_not is not None:
            raise LddganError(why_not)
        return {}

    def job(stage: str, what: str, command: Callable[[], str], after: str | None = None) -> Job:
        return Job(stage, what, NEEDS[what.split()[0]], partial(call, command), after)

    jobs = []
    for dataset in DATASETS:
        export = f"export {dataset}"
        jobs.append(job("trt", export, partial(export_command, dataset, (HALF,))))
        for batch in BATCHES:
            build = f"build {dataset}, batch {batch}"
            command = f"build --dataset {dataset} --precision {HALF} --batch 1,{batch},{batch}"
            jobs.append(job("trt", build, partial(str, command), export))
            for graph in (True, False):
                what = f"bench {dataset}, batch {batch}, {'CUDA graph' if graph else 'steps'}"
                run = partial(bench_command, journal, dataset, "trt", HALF, batch, graph)
                jobs.append(job("trt", what, run, build))
    for dataset in DATASETS:
        export = f"export {dataset}"
        jobs.append(job("ort", export, partial(export_command, dataset, FLOATS)))
        for batch in BATCHES:
            for precision in FLOATS:
                what = f"bench {dataset}, batch {batch}, {precision}"
                run = partial(bench_command, journal, dataset, "ort", precision, batch)
                jobs.append(job("ort", what, run, export))
    dataset, batch = DATASETS[0], BATCHES[0]
    path = shlex.quote(str(journal.path.parent / results_file(dataset, "cuda", "ladder").name))
    command = f"bench --dataset {dataset} --device cuda --batch {batch} --ladder --plot"
    command += f" --save {path}"
    return [*jobs, job("ladder", f"ladder {dataset}, batch {batch}", partial(str, command))]


def export_command(dataset: str, precisions: Sequence[Precision]) -> str:
    """What makes the bundle hold these precisions, of random weights if it is new.

    Returns "" if it holds them. Raises BadInput for a bundle that cannot be read.
    """
    folder = EXPORTS / dataset
    asked = "both" if len(precisions) > 1 else precisions[0]
    if not (folder / MANIFEST).is_file():
        return f"export --dataset {dataset} --precision {asked}"
    held = open_bundle(folder).precisions
    if set(precisions) <= set(held):
        return ""
    asked = "both" if held else asked
    return f"export --checkpoint {folder / CHECKPOINT} --precision {asked} --out {folder}"


def bench_command(
    journal: Journal,
    dataset: str,
    engine: str,
    precision: Precision,
    batch: int,
    cuda_graph: bool = True,
) -> str:
    """The row of an engine, verified; it takes fewer trials where the time is short."""
    seconds = max(0, journal.limit - OVERHEAD_SECONDS)
    graph = "" if cuda_graph else "--no-cuda-graph "
    return (
        f"bench --dataset {dataset} --engine {engine} --precision {precision} --device cuda "
        f"--batch {batch} --trials {TRIALS[batch]} --max-seconds {seconds:.0f} "
        f"{graph}--verify --save {shlex.quote(str(journal.path))} --json"
    )
