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
EXPORTED: Final[dict[str, Sequence[Precision]]] = {"trt": ("fp16",), "ort": FLOATS}  # by engine
WAYS: Final[dict[str, dict[str, str]]] = {  # to run an engine: options of `lddgan bench`
    "trt": {"CUDA graph": "--precision fp16", "steps": "--precision fp16 --no-cuda-graph"},
    "ort": {precision: f"--precision {precision}" for precision in FLOATS},
}
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

    def add(stage: str, what: str, command: Callable[[], str], after: str | None = None) -> str:
        jobs.append(Job(stage, what, NEEDS[what.split()[0]], partial(call, command), after))
        return what

    jobs: list[Job] = []
    for engine, ways in WAYS.items():
        for dataset in DATASETS:
            command = partial(export_command, dataset, EXPORTED[engine])
            export = ready = add(engine, f"export {dataset}", command)
            for batch in BATCHES:
                of = f"{dataset}, batch {batch}"
                if engine == "trt":
                    build = f"build --dataset {dataset} --precision fp16 --batch 1,{batch},{batch}"
                    ready = add(engine, f"build {of}", partial(str, build), export)
                for way, options in ways.items():
                    asked = f"--dataset {dataset} --engine {engine} {options} --batch {batch}"
                    command = partial(bench_command, journal, asked, TRIALS[batch])
                    add(engine, f"bench {of}, {way}", command, ready)
    dataset, batch = DATASETS[0], BATCHES[0]
    path = shlex.quote(str(journal.path.parent / results_file(dataset, "cuda", "ladder").name))
    ladder = (
        f"bench --dataset {dataset} --device cuda --batch {batch} --ladder --plot --save {path}"
    )
    add("ladder", f"ladder {dataset}, batch {batch}", partial(str, ladder))
    return jobs


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


def bench_command(journal: Journal, asked: str, trials: int) -> str:
    """The row of an engine, verified; it takes fewer trials where the time is short."""
    seconds = max(0, journal.limit - OVERHEAD_SECONDS)
    return (
        f"bench {asked} --device cuda --trials {trials} --max-seconds {seconds:.0f} --verify "
        f"--save {shlex.quote(str(journal.path))} --json"
    )
