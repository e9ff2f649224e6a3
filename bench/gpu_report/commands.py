"""TensorRT, ONNX Runtime and the ladder: jobs that are commands of lddgan, each a process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.child import run_child
from bench.gpu_report import BATCHES, DATASETS
from bench.gpu_report.journal import MOST, Job
from bench.ladder import ladder_file
from bench.row import REPORT
from export.bundle import CHECKPOINT, EXPORTS, MANIFEST, open_bundle
from lddgan.errors import LddganError
from lddgan.names import FLOATS, Precision
from lddgan.progress import Log

Command = tuple[str, ...]

PROGRAM: Final = (sys.executable, "-m", "lddgan")
HALF: Final[Precision] = "fp16"
TRIALS: Final = {100: 50, 1: 300}  # by batch
NEEDS: Final = {"export": 60.0, "build": 60.0, "bench": 40.0, "ladder": 300.0}  # not yet measured
OVERHEAD: Final = 30.0  # seconds of a benchmark that its --max-seconds does not count


def command_jobs(out: Path, program: Sequence[str], log: Log) -> list[Job]:
    """All of them, in their order; `out` is the report's folder."""

    def job(stage: str, what: str, run: Callable[[float], Command | None], **more: Any) -> Job:
        return Job(stage, what, NEEDS[what.partition(" ")[0]], partial(call, run), **more)

    def call(command_of: Callable[[float], Command | None], limit: float) -> dict[str, Any]:
        command = command_of(limit)
        if command is None:
            return {"said": "there already"}
        log(f"lddgan {' '.join(command)}")
        why_not = run_child((*program, *command), limit)
        if why_not is not None:
            raise LddganError(why_not)
        return {}

    rows = out / REPORT
    jobs = []
    for dataset in DATASETS:
        export = f"export {dataset}"
        jobs.append(job("trt", export, partial(export_command, dataset, (HALF,))))
        for batch in BATCHES:
            build = f"build {dataset}, batch {batch}"
            jobs.append(job("trt", build, partial(build_command, dataset, batch), after=export))
            for graph in (True, False):
                what = f"bench {dataset}, batch {batch}, {'CUDA graph' if graph else 'steps'}"
                run = partial(bench_command, dataset, "trt", HALF, batch, graph, rows)
                jobs.append(job("trt", what, run, after=build))
    for dataset in DATASETS:
        export = f"export {dataset}"
        jobs.append(job("ort", export, partial(export_command, dataset, FLOATS)))
        for batch in BATCHES:
            for precision in FLOATS:
                what = f"bench {dataset}, batch {batch}, {precision}"
                run = partial(bench_command, dataset, "ort", precision, batch, True, rows)
                jobs.append(job("ort", what, run, after=export))
    climb = partial(ladder_command, out / ladder_file(DATASETS[0], "cuda").name)
    return [*jobs, job("ladder", f"ladder {DATASETS[0]}, batch {BATCHES[0]}", climb)]


def export_command(
    dataset: str, precisions: Sequence[Precision], _limit: float = MOST
) -> Command | None:
    """What makes the bundle hold these precisions; None if it does. Of random weights if new.

    Raises BadInput for a bundle that cannot be read.
    """
    folder = EXPORTS / dataset
    asked = "both" if len(precisions) > 1 else precisions[0]
    if not (folder / MANIFEST).is_file():
        return ("export", "--dataset", dataset, "--precision", asked)
    held = open_bundle(folder).precisions
    if set(precisions) <= set(held):
        return None
    asked = "both" if held else asked
    checkpoint = str(folder / CHECKPOINT)
    return ("export", "--checkpoint", checkpoint, "--precision", asked, "--out", str(folder))


def build_command(dataset: str, batch: int, _limit: float) -> Command:
    """TensorRT tuned for the batch."""
    return (
        *("build", "--dataset", dataset),
        *("--precision", HALF, "--batch", f"1,{batch},{batch}"),
    )


def bench_command(
    dataset: str,
    engine: str,
    precision: Precision,
    batch: int,
    cuda_graph: bool,
    rows: Path,
    limit: float,
) -> Command:
    """The row of an engine, verified; it takes fewer trials where the time is too short."""
    return (
        *("bench", "--dataset", dataset, "--engine", engine, "--precision", precision),
        *("--device", "cuda", "--batch", str(batch), "--trials", str(TRIALS[batch])),
        *("--max-seconds", f"{max(0, limit - OVERHEAD):.0f}"),
        *(() if cuda_graph else ("--no-cuda-graph",)),
        *("--verify", "--save", str(rows), "--json"),
    )


def ladder_command(path: Path, _limit: float) -> Command:
    """Every way to run one model, kept in `path` and drawn beside it."""
    return (
        *("bench", "--dataset", DATASETS[0], "--device", "cuda", "--batch", str(BATCHES[0])),
        *("--ladder", "--plot", "--save", str(path)),
    )
