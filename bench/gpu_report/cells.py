"""Benchmarks of models in memory: an engine and PyTorch fp32 in turns, and its verification."""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any, Final, NamedTuple

from bench.assemble import Extras, Subject, make_row, with_verification
from bench.gpu_report import BATCHES, DATASETS
from bench.gpu_report.journal import Job, Journal
from bench.roofline import Ceilings, Device
from bench.row import BenchRow
from bench.run import BASELINE, LEAST_VERIFIED, measure_here
from bench.timing import Plan, Side, made_to_fit, run_trial
from engine.backends.fused.engine import FusedBackend
from engine.registry import BASELINE_PRECISION, open_model
from engine.sampler import Sampler
from engine.verification import verify_engine
from lddgan.checkpoint import Model, random_model
from lddgan.names import Precision
from lddgan.preset import Preset, resized, with_values
from lddgan.presets import get_preset
from lddgan.progress import Log

Engine = tuple[str, Precision]

ENGINES: Final[tuple[Engine, ...]] = (("fused", "fp16"), ("torch", "fp16"))
ALSO: Final[dict[str, tuple[Engine, ...]]] = {"lsun": (("fused", "bf16"),)}  # at the first batch
COMPILED: Final[Engine] = ("torch-compile", "fp16")
TRIALS: Final = 300
TURNS: Final = {100: 20.0, 1: 8.0}  # seconds for both sides, by batch, where time is short
PATIENT: Final = 60.0  # where it is not
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
    """One model at a time, and PyTorch's fp32 side of it, open."""

    def __init__(self, journal: Journal, log: Log, *, dry: bool, hurried: bool) -> None:
        self.journal, self.log, self.dry, self.hurried = journal, log, dry, hurried
        self.device: Device = "cpu" if dry else "cuda"
        self.model: Model | None = None
        self.baseline: Side | None = None

    def model_of(self, dataset: str) -> Model:
        """The random model of a preset, the same on every machine."""
        if self.model is None or self.model.preset.name != dataset:
            self.model = self.baseline = None  # frees the memory of the one before
            preset = get_preset(dataset)
            self.model = random_model(small(preset) if self.dry else preset)
        return self.model

    def open(self, cell: Cell, batch: int, *, cuda_graph: bool = True) -> Side:
        """An engine on the cell's model; a dry run has its CPU stand for all."""
        model = self.model_of(cell.dataset)
        if self.dry and cell.engine == "fused":
            backend = FusedBackend(copy.deepcopy(model), BASELINE_PRECISION)
            sampler = Sampler(backend, model.preset, random_weights=True, log=self.log)
        else:
            precision = BASELINE_PRECISION if self.dry else cell.precision
            sampler = open_model(
                model,
                cell.engine,
                precision,
                self.device,
                batch=batch,
                cuda_graph=cuda_graph,
                log=self.log,
            )
        return Side(sampler, sampler.backend.timer())

    def baseline_of(self, dataset: str, batch: int) -> Side:
        if self.baseline is None or self.baseline.sampler.preset.name != dataset:
            self.baseline = self.open(Cell(dataset, batch, BASELINE, BASELINE_PRECISION), batch)
        return self.baseline

    def measure(self, cell: Cell, verify: bool, limit: float) -> dict[str, Any]:
        """Add the row of a cell, and say what is not in it; the row is there before it is verified.

        Raises LddganError for an engine that cannot run, or that makes NaN.
        """
        batch = DRY_BATCH if self.dry else cell.batch
        turns = min(TURNS[cell.batch] if self.hurried else PATIENT, limit / 3)
        trials = DRY_TRIALS if self.dry else TRIALS
        plan = Plan(self.device, batch, trials, 0, turns)
        model, baseline = self.model_of(cell.dataset), self.baseline_of(cell.dataset, batch)
        clock = time.perf_counter()
        side = self.open(cell, batch)
        opened = time.perf_counter()
        made_to_fit(lambda one, asked: run_trial(one, asked.seed, batch), side, plan, self.log)
        first = time.perf_counter()
        found, here = measure_here(
            lambda: side, lambda: baseline, plan, self.log, lambda _done, _asked: None
        )
        apart = [one._replace(peak_memory_mib=None) for one in found.opened]  # others ran here too
        subject = Subject(model.preset, model.has_random_weights, {})
        extras = Extras(ceilings=self.ceilings())
        row = make_row(subject, plan, found._replace(opened=apart), None, here, extras)
        self.journal.add(row)
        if verify:
            checked = verify_engine(
                side.sampler,
                copy.deepcopy(model),
                images=max(batch, LEAST_VERIFIED),
                device=self.device,
                at_once=batch,
                log=self.log,
            )
            unverified, row = row, with_verification(row, checked)
            self.journal.add(row, instead_of=unverified)
        return self.in_short(row) | {
            "open_seconds": round(opened - clock, 2),
            "first_run_seconds": round(first - opened, 2),
        }

    def ceilings(self) -> Ceilings | None:
        """What this report measured of the GPU before."""
        known = self.journal.about("ceilings", "rates")
        if known is None or known.why_not is not None:
            return None
        return Ceilings.model_validate(known.found)

    def in_short(self, row: BenchRow) -> dict[str, Any]:
        """The figures that a reader of the log looks for."""
        whole = row.engine.times.whole.p50
        said: dict[str, Any] = {
            "ms": round(whole, 3),
            "images_per_second": round(row.engine.images_per_second, 1),
            "times_as_fast_as_torch_fp32": None if row.ratio is None else round(row.ratio, 3),
            "trials": row.trials,
        }
        checked = row.engine.verification
        if checked is not None:
            said["verified"] = checked["why_failed"] or "passed"
        if self.device == "cuda":
            import torch

            said["most_gpu_memory_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
            torch.cuda.reset_peak_memory_stats()
        return said


def small(preset: Preset) -> Preset:
    """A preset of the same name and layers that a CPU runs in milliseconds."""
    halvings = max(preset.generator.halvings, preset.discriminator.halvings)
    return resized(with_values(preset, SMALL), preset.autoencoder.factor << halvings)


def cell_jobs(bench: Bench) -> list[Job]:
    """The cells of every model, the most telling first."""
    return [cell_job(bench, cell.dataset, cell) for cell in cells()]


def cells() -> list[Cell]:
    return [
        Cell(dataset, batch, *engine)
        for dataset in DATASETS
        for batch in BATCHES
        for engine in (*ENGINES, *(ALSO.get(dataset, ()) if batch == BATCHES[0] else ()))
    ]


def compile_job(bench: Bench) -> Job:
    """PyTorch's own compiler, which takes minutes and is not verified."""
    cell = Cell(DATASETS[0], BATCHES[0], *COMPILED)
    return cell_job(bench, "compile", cell)._replace(needs=COMPILE_NEEDS)


def cell_job(bench: Bench, stage: str, cell: Cell) -> Job:
    verify = cell.engine == "fused"  # what differs from the published network
    return Job(stage, cell.words, NEEDS[cell.batch], partial(bench.measure, cell, verify))
