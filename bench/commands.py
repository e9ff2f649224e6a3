"""The commands that measure: `lddgan presets` and `lddgan bench`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.commands import CudaGraph, Engine, EnginePrecision
from export.commands import BundleFolder, chosen_bundle
from lddgan.errors import BadInput
from lddgan.extras import require
from lddgan.options import Dataset, Device, Json, Seed, note, print_json

if TYPE_CHECKING:
    from bench.row import Row
    from export.bundle import Bundle

Cost = Annotated[
    bool,
    typer.Option("--cost", help="Measure parameters, multiply-adds, memory; takes minutes."),
]
Images = Annotated[int | None, typer.Option(min=1, help="Images per trial; default 100.")]
Trials = Annotated[int, typer.Option(min=1, help="Measured runs.")]
MaxSeconds = Annotated[float | None, typer.Option(min=0, help="Cuts trials; default 120 on a CPU.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Also compare with PyTorch fp32, on the same images.")
]
Save = Annotated[
    Path | None,
    typer.Option(
        *("--save", "--out"),
        help="Append to this .jsonl file; a ladder without it is kept under bench/results/.",
    ),
]
Ladder = Annotated[
    bool,
    typer.Option(
        "--ladder",
        help="Every way to run the model, from PyTorch to the best; --max-seconds is for each of "
        "them, default 30.",
    ),
]
Compare = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help="Several data sets' bundles in turns, beside the paper's times; no PyTorch baseline.",
    ),
]
Plot = Annotated[
    bool,
    typer.Option(
        "--plot",
        help="Draw the newest ladder into docs/, or that of --save beside it; alone, nothing is "
        "measured.",
    ),
]
Train = Annotated[
    bool,
    typer.Option(
        "--train",
        help="Steps of the training instead, of --dataset or the three big models; default batch "
        "the training's, on a CPU a few images; --max-seconds is for each variant, default 60.",
    ),
]


def presets(cost: Cost = False, as_json: Json = False) -> None:
    """List the models: their parts, and the paper's figures; with --json every setting."""
    from bench.cost import cost_table
    from bench.preset_tables import print_costs, print_presets
    from lddgan.presets import PRESETS

    rows: Any = cost_table() if cost else list(PRESETS.values())
    print_table = print_costs if cost else print_presets
    print_json([row.model_dump() for row in rows]) if as_json else print_table(rows)


def bench(
    dataset: Dataset = None,
    bundle: BundleFolder = None,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: EnginePrecision = None,
    batch: Images = None,
    trials: Trials = 300,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    cuda_graph: CudaGraph = True,
    verify: Verify = False,
    save: Save = None,
    ladder: Ladder = False,
    compare: Compare = None,
    plot: Plot = False,
    training: Train = False,
    as_json: Json = False,
) -> None:
    """Measure an engine, or all (--ladder), against PyTorch; models (--compare); or training."""
    given: dict[str, Any] = {"device": device, "trials": trials, "max_seconds": max_seconds}
    chosen = engine != "auto" or precision is not None or not cuda_graph or verify
    if training:
        if chosen or bundle or seed or ladder or plot or compare is not None:
            raise BadInput(
                "--train measures no engine; leave out --bundle, --engine, --precision, --seed, "
                "--no-cuda-graph, --verify, --ladder, --plot and --compare"
            )
        measure_training(dataset, as_json, out=save, batch=batch, **given)
        return
    given |= {"batch": batch or 100, "seed": seed}
    one = {"engine": engine, "precision": precision, **given}
    if compare is not None:
        from bench.compare import named_bundles

        if dataset or bundle or ladder or plot or verify or not cuda_graph:
            raise BadInput(
                "--compare names its models; leave out --dataset, --bundle, --ladder, --plot, "
                "--train, --verify and --no-cuda-graph"
            )
        measure_engines(named_bundles(compare), save, as_json, **one)
        return
    opened = chosen_bundle(dataset, bundle)
    if not (ladder or plot):
        measure_engines([opened], save, as_json, cuda_graph=cuda_graph, verify=verify, **one)
        return
    if chosen:
        raise BadInput(
            "a ladder takes every engine and precision; leave out --engine, --precision, "
            "--no-cuda-graph and --verify"
        )
    if ladder:
        measure_ladder(opened, as_json, out=save, **given)
    if plot:
        from bench.plot import draw

        for path in draw(opened.preset.name, save, note):
            note(f"{path}: drawn")


def print_rows(rows: list[Row], as_json: bool, print_table: Callable[[list[Row]], None]) -> None:
    """Print rows as JSON, a line each, or as a table."""
    if as_json:
        print_json("\n".join(row.line() for row in rows))
    else:
        print_table(rows)


def measure_engines(opened: list[Bundle], save: Path | None, as_json: bool, **given: Any) -> None:
    """Measure an engine beside the baseline, or several models; print the rows and keep them."""
    from bench.compare import compare
    from bench.row import add_rows, check_rows_file
    from bench.run import benchmark
    from bench.tables import print_compared, print_engine
    from lddgan.progress import Meter

    alone = len(opened) == 1
    run = partial(benchmark, opened[0]) if alone else partial(compare, opened)
    if save is not None:
        check_rows_file(save)
    with Meter("measuring", 0, given["trials"], None, unit="trials") as meter:
        rows = run(**given, log=note, progress=meter.follow)
    print_rows(rows, as_json, print_engine if alone else print_compared)
    if save is not None:
        add_rows(rows, save)


def measure_ladder(opened: Bundle, as_json: bool, **given: Any) -> None:
    """Measure every way to run a model; its rows are kept as soon as they exist."""
    from bench.ladder import run_ladder
    from bench.tables import print_ladder

    print_rows(run_ladder(opened, log=note, **given), as_json, print_ladder)


def measure_training(dataset: str | None, as_json: bool, **given: Any) -> None:
    """Measure the training's steps; the rows of a stage are printed when they exist."""
    require("torch", "safetensors")
    from bench.tables import print_training
    from bench.training_step import BIG, bench_training
    from lddgan.presets import get_preset

    presets = [get_preset(name) for name in (BIG if dataset is None else (dataset,))]
    show = partial(print_rows, as_json=as_json, print_table=print_training)
    bench_training(presets, show=show, log=note, **given)
