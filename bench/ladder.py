"""The ladder: every way to run one model on one machine, each in turns with the baseline.

A rung is one way, from PyTorch as published to the best engine on the graphs that users run.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench.cost import Cost, measure_cost
from bench.machine import gpu, machine, torch_settings
from bench.roofline import measure_ceilings, summary
from bench.row import Row, check_rows_file, keep_each, new_row, now, results_file
from bench.run import Exported, beside, side_fields, usable_device
from bench.tables import number
from bench.timing import Budget, Plan, take_turns, warm_up
from engine.registry import BASELINE, BASELINE_PRECISION, ENGINES, find_engine, open_engine
from engine.sampler import Sampler, check_request
from engine.timing import Clock
from export.bundle import CHECKPOINT, Bundle, file_entries, graph_file
from lddgan.errors import LddganError
from lddgan.extras import require
from lddgan.files import atomic_folder
from lddgan.names import Device, DeviceName, Precision
from lddgan.progress import Log

if TYPE_CHECKING:
    from lddgan.checkpoint import Model

MAX_SECONDS: Final = 30.0  # for the turns of one rung, unless asked otherwise
EXPORTED: Final[dict[Device, Precision]] = {"cpu": "fp32", "cuda": "fp16"}  # graphs made for it
BUNDLED: Final[dict[Device, tuple[Precision, ...]]] = {"cpu": ("fp32", "int8"), "cuda": ("fp16",)}


class Rung(NamedTuple):
    """One way to run the model; `open` raises LddganError where it cannot."""

    name: str
    open: Callable[[], Sampler]


class Work(NamedTuple):
    """What the rungs of one ladder share; `fields` are those of every row."""

    plan: Plan
    cost: Cost
    exported: Exported
    session: str
    fields: dict[str, Any]
    log: Log


def run_ladder(
    bundle: Bundle,
    device: DeviceName,
    *,
    batch: int,
    trials: int,
    seed: int,
    max_seconds: float | None = None,
    out: Path | None = None,
    log: Log = lambda _: None,
) -> list[Row]:
    """Measure every rung of a bundle and add each row to `out` as soon as it exists.

    `auto` is the GPU if PyTorch can use it. `out` (None: `results_file`) keeps what it holds.
    `max_seconds` (None: MAX_SECONDS) cuts the trials of each rung, never the batch.
    Raises BadInput for unusable arguments, LddganError if the baseline cannot run; any other rung
    that cannot run is a row that says why.
    """
    check_request(1, seed, 0, batch)
    require("torch", "safetensors", "onnx", "onnxscript", "onnxruntime")
    where = usable_device(device)
    path = out or results_file(bundle.preset.name, where, "ladder")
    check_rows_file(path)
    plan = Plan(where, batch, trials, seed, MAX_SECONDS if max_seconds is None else max_seconds)
    here, ceilings = machine(), measure_ceilings(bundle.preset, where)
    log(summary(ceilings))
    fields = {
        "dataset": bundle.preset.name,
        "batch": batch,
        "device": where,
        "machine": here.model_copy(update={"gpu": gpu() if where == "cuda" else None}),
        "torch_settings": torch_settings(where),
        "max_seconds": plan.max_seconds,
        "ceilings": ceilings,
    }
    cost, exported = measure_cost(bundle.preset), bundle.manifest.verification
    work = Work(plan, cost, exported, now(), fields, log)
    with tempfile.TemporaryDirectory(prefix="lddgan-ladder-") as folder:
        rungs = rungs_of(Workshop(bundle, where, batch, Path(folder), log))
        return keep_each(climb(rungs, work), path)


def climb(rungs: Sequence[Rung], work: Work, clock: Clock = time.perf_counter) -> Iterator[Row]:
    """Measure the rungs in turns with the first, the baseline, which stays open.

    Raises LddganError if the baseline cannot run.
    """
    baseline, plan = rungs[0].open(), work.plan
    for place, rung in enumerate(rungs):
        work.log(f"{place + 1} of {len(rungs)}: {rung.name}")
        fields = work.fields | {"rung": rung.name}
        try:
            sampler = rung.open() if place else baseline
            fields |= measure_rung(sampler, baseline, work, clock)
            del sampler  # its memory, before the next one is opened
        except LddganError as error:
            if place == 0:
                raise
            fields["why_not"] = str(error)
        gc.collect()  # modules of a closed rung hold cycles
        if plan.device == "cuda":
            import torch

            torch.cuda.empty_cache()
        row = new_row("rung", work.session, **fields)
        work.log(sentence(row))
        yield row


def measure_rung(sampler: Sampler, baseline: Sampler, work: Work, clock: Clock) -> dict[str, Any]:
    """Warm a rung up, then time it in turns with the baseline. Returns the fields of its row.

    Raises LddganError for NaN, OutOfMemory if one image does not fit.
    """
    plan = work.plan
    warm_up(sampler, plan, work.log, clock)
    samplers = [sampler] if sampler is baseline else [sampler, baseline]
    sides = take_turns(samplers, plan, Budget(plan.max_seconds, clock))
    fields = side_fields(sides[0], plan, work.cost, work.exported)
    if sampler is baseline:
        return fields | {"baseline_ms": fields["ms"]["whole"].p50}
    return fields | beside(*sides)


def sentence(row: Row) -> str:
    """One rung for the log."""
    if row.why_not is not None:
        return f"{row.rung}: did not run: {row.why_not}"
    times = f"{row.ratio:.2f} times as fast as the baseline"
    return f"{row.rung}: {number(row.whole_ms)} ms, {times}, {row.trials} trials"


class Workshop:
    """Where rungs are made: one bundle on one device, and a folder for graphs of their own."""

    def __init__(self, bundle: Bundle, device: Device, batch: int, folder: Path, log: Log) -> None:
        self.bundle, self.device, self.folder, self.log = bundle, device, folder, log
        self.options: dict[str, Any] = {"batch": batch, "log": log}
        self.exported: dict[tuple[str, ...], Bundle] = {}  # by rewrites

    def load(self) -> Model:
        """The bundle's model, read anew: an engine may move it to its device."""
        from lddgan.checkpoint import load_checkpoint

        return load_checkpoint(self.bundle.file(CHECKPOINT))

    def engine(self, name: str, precision: Precision) -> Sampler:
        """An engine as `lddgan bench` opens it."""
        return open_engine(self.bundle, name, precision, self.device, **self.options)

    def torch(self, precision: Precision, *, compiled: bool = False, nhwc: bool = False) -> Sampler:
        """PyTorch in one of its ways; on a CPU too, where `lddgan bench` does not compile."""
        from engine.backends.torch.run import TorchBackend

        model = self.load()
        backend = TorchBackend(model, self.device, precision, compiled=compiled, nhwc=nhwc)
        random = self.bundle.has_random_weights
        return Sampler(backend, model.preset, random_weights=random, log=self.log)

    def rewritten(self, rewrites: tuple[str, ...], engine: str = "ort") -> Sampler:
        """An engine on graphs exported with some rewrites. They are not verified."""
        precision = EXPORTED[self.device]
        if rewrites not in self.exported:
            folder = self.folder / str(len(self.exported))
            self.log(f"exporting the graphs: {', '.join(rewrites) or 'no rewrites'}")
            with atomic_folder(folder) as temporary:
                export_graphs(self.load(), precision, rewrites, temporary)
            files = self.bundle.manifest.model_copy(update={"files": file_entries(folder)})
            self.exported[rewrites] = Bundle(folder, files)
        return open_engine(self.exported[rewrites], engine, precision, self.device, **self.options)


def export_graphs(model: Model, precision: Precision, rewrites: Sequence[str], out: Path) -> None:
    """Write both graphs. Raises LddganError if the exporter cannot."""
    import onnx
    import torch

    from export.exporter import graph_modules
    from export.fp16 import to_half
    from export.graphs import graph_specs, most_images
    from export.to_onnx import export_graph

    specs, most = graph_specs(model.preset), most_images(model.preset)
    for which, module in graph_modules(model, rewrites).items():
        path = out / graph_file(which, precision)
        try:
            graph = to_half(module) if precision == "fp16" else module
            export_graph(graph, specs[which], path, most)
        except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError) as error:
            cause = str(error).strip().partition("\n")[0]
            raise LddganError(f"the {which} could not be exported: {cause}") from error


def rungs_of(shop: Workshop) -> list[Rung]:
    """The rungs in their order; the first is the baseline."""
    from export.rewrites import TAKES

    fp32, device = BASELINE_PRECISION, shop.device
    rungs = [
        Rung("torch", partial(shop.torch, fp32)),
        Rung("torch, channels-last", partial(shop.torch, fp32, nhwc=True)),
        Rung("torch-compile", partial(shop.torch, fp32, compiled=True)),
    ]
    engines = [  # best first; those of PyTorch have their own rungs
        name
        for name in ENGINES
        if device in find_engine(name).precisions and not name.startswith(BASELINE)
    ]
    if device == "cuda":
        rungs += [
            Rung("torch fp16", partial(shop.torch, "fp16")),
            Rung("torch-compile fp16", partial(shop.torch, "fp16", compiled=True)),
        ]
    for engine in (name for name in engines if find_engine(name).needs_graphs):
        rungs.append(Rung(f"{engine}, no rewrites", partial(shop.rewritten, (), engine)))
    taken = TAKES[EXPORTED[device]]
    for count, name in enumerate(taken, start=1):
        rungs.append(Rung(f"+ {name}", partial(shop.rewritten, taken[:count])))
    for precision in BUNDLED[device]:
        for engine in reversed(engines):
            if precision in find_engine(engine).precisions[device]:
                name = f"{engine} {precision}, the bundle"
                rungs.append(Rung(name, partial(shop.engine, engine, precision)))
    return rungs
