"""The commands that measure: `lddgan presets` and `lddgan bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.commands import CudaGraph, Engine, EnginePrecision
from export.commands import BundleFolder, chosen_bundle
from lddgan.names import DeviceName
from lddgan.options import Dataset, Device, Json, Seed, note, print_json, workers_for

if TYPE_CHECKING:
    from export.bundle import Bundle
    from lddgan.names import Precision


def presets(as_json: Json = False) -> None:
    """List the models: sizes, cost, and the paper's figures."""
    from bench.cost import preset_table, print_preset_table

    rows = preset_table()
    print_json([row.model_dump() for row in rows]) if as_json else print_preset_table(rows)


def bench(
    dataset: Dataset = None,
    bundle: BundleFolder = None,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: EnginePrecision = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per trial; default 100.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Measured runs.")] = 300,
    seed: Seed = 0,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Cuts trials; default 120 on a CPU.")
    ] = None,
    cuda_graph: CudaGraph = True,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare with PyTorch fp32 too, on the same images.")
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            "--out",
            help="Append to this .jsonl file; a ladder without it is kept under bench/results/.",
        ),
    ] = None,
    ladder: Annotated[
        bool,
        typer.Option(
            "--ladder",
            help="Every way to run the model, from PyTorch to the best; --max-seconds is for "
            "each of them, default 30.",
        ),
    ] = False,
    plot: Annotated[
        bool,
        typer.Option(
            "--plot",
            help="Draw the newest ladder into docs/, or that of --save beside it; alone, nothing "
            "is measured.",
        ),
    ] = False,
    training: Annotated[
        bool,
        typer.Option(
            "--train",
            help="Steps of the training instead, of --dataset or the three big models; default "
            "batch the training's, on a CPU a few images; --max-seconds is for each variant, "
            "default 60.",
        ),
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="With --train: images, to time reading them too.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="With --data: processes that read; default 4.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure an engine, or every one (--ladder), against the PyTorch baseline; or training."""
    from bench.report import print_row
    from bench.row import save_row
    from bench.run import benchmark
    from lddgan.progress import Meter

    if training:
        choices = (engine != "auto", precision, not cuda_graph, bundle, seed, verify)
        refuse_with_train(any(choices) or ladder or plot, data, workers)
        limits = {"batch": batch, "trials": trials, "max_seconds": max_seconds}
        measure_training(dataset, device, data, workers, save, as_json, limits)
        return
    refuse_without_train(data, workers)
    batch = 100 if batch is None else batch
    opened = chosen_bundle(dataset, bundle)
    if ladder or plot:
        refuse_with_ladder(engine, precision, cuda_graph, verify)
    if ladder:
        limits = {"batch": batch, "trials": trials, "seed": seed, "max_seconds": max_seconds}
        climb_ladder(opened, device, save, as_json, limits)
    if plot:
        draw_ladders(opened, save)
    if ladder or plot:
        return
    with Meter("measuring", 0, trials, None, unit="trials") as meter:
        row = benchmark(
            opened,
            engine,
            precision,
            device,
            cuda_graph=cuda_graph,
            batch=batch,
            trials=trials,
            seed=seed,
            max_seconds=max_seconds,
            verify=verify,
            log=note,
            progress=meter.follow,
        )
    typer.echo(row.model_dump_json()) if as_json else print_row(row)
    if save is not None:
        save_row(row, save)


def refuse_with_ladder(
    engine: str, precision: Precision | None, cuda_graph: bool, verify: bool
) -> None:
    """Raise BadInput for options that choose among what a ladder takes all of."""
    from lddgan.errors import BadInput

    if engine != "auto" or precision is not None or not cuda_graph or verify:
        raise BadInput(
            "a ladder takes every engine and precision; leave out --engine, --precision, "
            "--no-cuda-graph and --verify"
        )


def refuse_with_train(chosen: bool, data: Path | None, workers: int | None) -> None:
    """Raise BadInput for options of the other benchmarks."""
    from lddgan.errors import BadInput

    if chosen:
        raise BadInput(
            "--train measures no engine; leave out --bundle, --engine, --precision, --seed, "
            "--no-cuda-graph, --verify, --ladder and --plot"
        )
    if workers is not None and data is None:
        raise BadInput("--workers read the images of --data; give both or neither")


def refuse_without_train(data: Path | None, workers: int | None) -> None:
    """Raise BadInput for options of --train alone."""
    from lddgan.errors import BadInput

    if data is not None or workers is not None:
        raise BadInput("--data and --workers belong to --train")


def measure_training(
    dataset: str | None,
    device: DeviceName,
    data: Path | None,
    workers: int | None,
    out: Path | None,
    as_json: bool,
    limits: dict[str, Any],
) -> None:
    """Measure the training's steps; each row is shown when it is there."""
    from bench.training.measure import bench_training, presets_of
    from bench.training.row import Row
    from bench.training.table import print_training

    def show(row: Row) -> None:
        typer.echo(row.model_dump_json()) if as_json else print_training(row)

    bench_training(
        presets_of(dataset),
        device,
        data=data,
        workers=workers_for(data, workers),
        out=out,
        show=show,
        log=note,
        **limits,
    )


def climb_ladder(
    opened: Bundle, device: DeviceName, out: Path | None, as_json: bool, limits: dict[str, Any]
) -> None:
    """Measure every rung and print the table."""
    from bench.ladder import print_ladder, run_ladder

    rows = run_ladder(opened, device, out=out, log=note, **limits)
    print_json([row.model_dump(mode="json") for row in rows]) if as_json else print_ladder(rows)


def draw_ladders(opened: Bundle, out: Path | None) -> None:
    """Draw what is kept."""
    from bench.plot import draw

    for path in draw(opened.preset.name, out, note):
        note(f"{path}: drawn")
