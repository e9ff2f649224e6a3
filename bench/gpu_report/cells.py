"""Benchmarks of models in memory: an engine and PyTorch fp32 in turns, and its verification."""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any, Final, NamedTuple

from bench.gpu_report import BATCHES, DATASETS
from bench.gpu_report.journal import Job, Journal
from bench.roofline import Ceilings
from bench.run import LEAST_VERIFIED, make_rows, measure, with_verification
from bench.timing import Plan, warm_up
from engine.backends.fused.run import FusedBackend
from engine.registry import BASELINE, BASELINE_PRECISION, open_model
from engine.sampler import Sampler
from engine.verify import verify_engine
from lddgan.checkpoint import Model, random_model
from lddgan.names import Device, Precision
from lddgan.preset import Preset, resized, with_values
from lddgan.presets import get_preset

Engine = tuple[str, Precision]

ENGINES: Final[tuple[Engine, ...]] = (("fused", "fp16"), ("torch", "fp16"))
ALSO: Final[dict[str, tuple[Engine, ...]]] = {"lsun": (("fused", "bf16"),)}  # at the first batch
COMPILED: Final[Engine] = ("torch-compile", "fp16")
TRIALS: Final = 300
TURN_SECONDS: Final = {100: 20.0, 1: 8.0}  # for both sides, by batch, where time is short
PATIENT: Final = 60.0  # seconds where it is not
NEEDS: Final = {100: 45.0, 1: 15.0}  # seconds of a cell on an H100, not yet measured
COMPILE_NEEDS: Final = 80.0
DRY_BATCH: Final = 2
DRY_TRIALS: Final = 2
SMALL: Final = {
    "generator.nf": 16,
    "generator.blocks": 1,
    "generator.z_emb_dim": 16,
    "autoencoder.ch": 32,
    "autoencoder.blocks": 1,
}


class Cell(NamedTuple):
    """What one row is of."""

    dataset: str
    batch: int
    engine: str
    precision: Precision

    @property
    def words(self) -> str:
        return f"batch {self.batch}, {self.engine} {self.precision}"


class Bench:
    """One model at a time, with PyTorch's fp32 side of it open."""

    def __init__(self, journal: Journal, *, dry: bool) -> None:
        self.journal, self.log, self.dry = journal, journal.log, dry
        self.device: Device = "cpu" if dry else "cuda"
        self.model: Model | None = None
        self.baseline: Sampler | None = None

    def model_of(self, dataset: str) -> Model:
        """The random model of a preset, the same on every machine."""
        if self.model is None or self.model.preset.name != dataset:
            self.model = self.baseline = None  # frees the memory of the one before
            preset = get_preset(dataset)
            self.model = random_model(small(preset) if self.dry else preset)
        return self.model

    def open(self, cell: Cell, batch: int, *, cuda_graph: bool = True) -> Sampler:
        """An engine on the cell's model; in a dry run the CPU stands for all."""
        model = self.model_of(cell.dataset)
        if self.dry and cell.engine == "fused":
            backend = FusedBackend(copy.deepcopy(model), BASELINE_PRECISION)
            return Sampler(backend, model.preset, random_weights=True, log=self.log)
        precision = BASELINE_PRECISION if self.dry else cell.precision
        options: dict[str, Any] = {"batch": batch, "cuda_graph": cuda_graph, "log": self.log}
        return open_model(model, cell.engine, precision, self.device, **options)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Add the rows of a cell, before it is verified. Returns its figures in short.

        Raises LddganError for an engine that cannot run or makes NaN.
        """
        batch = DRY_BATCH if self.dry else cell.batch
        hurried = self.journal.budget.limit != float("inf")
        limit = min(TURN_SECONDS[cell.batch] if hurried else PATIENT, self.journal.limit / 3)
        plan = Plan(self.device, batch, DRY_TRIALS if self.dry else TRIALS, 0, limit)
        model, began = self.model_of(cell.dataset), time.perf_counter()
        engine = self.open(cell, batch)
        warm_up(engine, plan, self.log)  # kernels are compiled
        ready = time.perf_counter() - began
        own = Cell(cell.dataset, batch, BASELINE, BASELINE_PRECISION)
        self.baseline = baseline = self.baseline or self.open(own, batch)
        sides, here = measure([lambda: engine, lambda: baseline], plan, self.log)
        sides = [side._replace(peak_memory_mib=None) for side in sides]  # others ran here too
        row, its = make_rows(sides, here, plan, ceilings=self.ceilings())
        self.journal.add([row, its])
        if cell.engine == "fused":  # it differs from the published network
            options: dict[str, Any] = {"images": max(batch, LEAST_VERIFIED), "at_once": batch}
            options |= {"device": self.device, "log": self.log}
            found = verify_engine(engine, copy.deepcopy(model), **options)
            self.journal.add([with_verification(row, found)], instead_of=row)
        return {
            "ms": round(row.whole_ms, 3),
            "images_per_second": round(row.images_per_second, 1),
            "times_as_fast_as_torch_fp32": round(row.ratio or 0.0, 3),
            "ready_after_seconds": round(ready, 2),
        }

    def ceilings(self) -> Ceilings | None:
        """The GPU's ceilings if this report has measured them."""
        known = self.journal.about("ceilings", "rates")
        if known is None or known.why_not is not None:
            return None
        return Ceilings.model_validate(known.facts)


def small(preset: Preset) -> Preset:
    """A preset of the same name and layers that a CPU runs in milliseconds."""
    halvings = max(preset.generator.halvings, preset.discriminator.halvings)
    return resized(with_values(preset, SMALL), preset.autoencoder.factor << halvings)


def cells() -> list[Cell]:
    """Of every model, the most important first."""
    return [
        Cell(dataset, batch, *engine)
        for dataset in DATASETS
        for batch in BATCHES
        for engine in (*ENGINES, *(ALSO.get(dataset, ()) if batch == BATCHES[0] else ()))
    ]


def cell_job(bench: Bench, cell: Cell) -> Job:
    return Job(cell.dataset, cell.words, NEEDS[cell.batch], partial(bench.measure, cell))


def compile_job(bench: Bench) -> Job:
    """torch.compile, which takes minutes and is not verified."""
    job = cell_job(bench, Cell(DATASETS[0], BATCHES[0], *COMPILED))
    why_not = "a dry run leaves it out: it takes minutes" if bench.dry else None
    return job._replace(stage="compile", needs=COMPILE_NEEDS, why_not=why_not)
