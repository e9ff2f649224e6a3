"""The command line. Every command is a few lines that call the packages beside this file."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lddgan.commands import (
    Device,
    DeviceChoice,
    Seed,
    datasets,
    tell,
    train,
    train_autoencoder,
    which_process,
    workers_for,
)

if TYPE_CHECKING:
    from engine.sampler import Sampler
    from engine.verification import Verification
    from export.bundle import Bundle
    from lddgan.checkpoint import Model

app = typer.Typer(
    help="Inference engine for latent denoising diffusion GANs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(datasets, name="dataset")

BAD_INPUT, FAILURE = 2, 1  # exit codes; Ctrl-C is 130


class EngineChoice(StrEnum):
    auto = "auto"
    torch = "torch"
    torch_compile = "torch-compile"
    ort = "ort"
    openvino = "openvino"
    trt = "trt"
    trt_rtx = "trt-rtx"
    fused = "fused"


class TensorRtChoice(StrEnum):
    trt = "trt"
    trt_rtx = "trt-rtx"


class PrecisionChoice(StrEnum):
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"


class ExportPrecision(StrEnum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    both = "both"
    all = "all"
    none = "none"


Dataset = Annotated[
    str | None,
    typer.Option(
        help="cifar10, celeba_256, lsun or digits (the trained model that ships with lddgan). "
        "Without it: the newest bundle under exports/, or digits."
    ),
]
BundleFolder = Annotated[Path | None, typer.Option("--bundle", help="Folder of a bundle.")]
Engine = Annotated[EngineChoice, typer.Option(help="What runs the model.")]
Precision = Annotated[
    PrecisionChoice | None,
    typer.Option(
        help="Default fp16 for TensorRT and fused, if the bundle has it, else fp32; bf16 is for "
        "fused, int8 for CPUs."
    ),
]
Batch = Annotated[int | None, typer.Option(help="Images per batch.")]
CudaGraph = Annotated[
    bool, typer.Option(help="Run TensorRT or fused as one CUDA graph, or step by step.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command()
def presets(as_json: Json = False) -> None:
    """List the models: sizes, cost, and the paper's figures."""
    from bench.cost import preset_table, print_preset_table

    rows = preset_table()
    print_json([row.model_dump() for row in rows]) if as_json else print_preset_table(rows)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say which engines run here, and why the others do not."""
    from engine.doctor import examine, print_report

    report = examine()
    print_json(report.model_dump()) if as_json else print_report(report)


@app.command("import")
def import_(
    dataset: Annotated[str, typer.Option(help="cifar10, celeba_256 or lsun.")],
    generator: Annotated[Path, typer.Option(help="netG_N.pth or content.pth.")],
    autoencoder: Annotated[Path, typer.Option(help="The Lightning .ckpt file.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    raw_generator: Annotated[
        bool, typer.Option(help="Take the weights of a content.pth that has no moving average.")
    ] = False,
) -> None:
    """Read published checkpoints into one .safetensors file."""
    from lddgan.extras import require

    require("torch", "safetensors")
    from lddgan.checkpoint import save_checkpoint
    from lddgan.published.reader import import_published

    model = import_published(dataset, generator, autoencoder, use_raw=raw_generator)
    save_checkpoint(out, model)
    for part in ("generator", "autoencoder"):
        left_out = model.provenance[part]["left_out"]
        for prefix, count in left_out.items():
            typer.echo(f"{part}: {count} tensors under {prefix} are not needed and were left out")
    for sentence in model.provenance["notes"]:
        typer.echo(sentence)
    typer.echo(f"{out}: a {model.preset.name} model")


app.command()(train_autoencoder)
app.command()(train)


@app.command()
def export(
    dataset: Annotated[
        str | None, typer.Option(help="Which preset; a --checkpoint knows its own.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="From `import` or `train`; without it: random weights.")
    ] = None,
    precision: Annotated[
        ExportPrecision,
        typer.Option(
            help="both: fp32 and fp16; all: int8 for CPUs too; none: torch and fused need no graph."
        ),
    ] = ExportPrecision.both,
    out: Annotated[Path | None, typer.Option(help="Default exports/<dataset>.")] = None,
    rewrites: Annotated[
        str | None,
        typer.Option(help="none, or some of them (a,b,c), instead of what suits the engines."),
    ] = None,
    accept_psnr: Annotated[
        float | None,
        typer.Option(help="Publish int8 graphs whose images have this many dB or more."),
    ] = None,
) -> None:
    """Export the two graphs to ONNX, compare them with PyTorch, publish the bundle."""
    from lddgan.extras import require

    exporters = () if precision == ExportPrecision.none else ("onnx", "onnxscript", "onnxruntime")
    require("torch", "safetensors", *exporters)
    from export.bundle import EXPORTS
    from export.exporter import export_bundle, model_to_export
    from export.graphs import PRECISIONS, precisions_of
    from export.rewrites import TAKES, names_of

    model, source = model_to_export(dataset, checkpoint)
    if model.has_random_weights:
        warn_of_random_weights()
    folder = out or EXPORTS / model.preset.name
    asked = TAKES if rewrites is None else dict.fromkeys(PRECISIONS, names_of(rewrites))
    measured = export_bundle(
        model,
        folder,
        precisions_of(precision.value),
        checkpoint=source,
        rewrites=asked,
        accept_psnr=accept_psnr,
        log=note,
    )
    for name, found in measured.items():
        typer.echo(f"{name}: {found.summary()}")
    without = "" if measured else " without graphs, for --engine torch and fused"
    typer.echo(f"{folder}: published{without}; use it with --bundle {folder}")


@app.command()
def build(
    dataset: Dataset = None,
    bundle: BundleFolder = None,
    engine: Annotated[
        TensorRtChoice,
        typer.Option(help="trt: for this machine's GPU; trt-rtx: for GeForce RTX, without one."),
    ] = TensorRtChoice.trt,
    precision: Precision = None,
    batch: Annotated[
        str | None,
        typer.Option(help="MIN,OPT,MAX: the batches it takes, and the one it is tuned for."),
    ] = None,
    level: Annotated[
        int | None, typer.Option(min=0, max=5, help="More time for the builder, faster engines.")
    ] = None,
    rebuild: Annotated[bool, typer.Option(help="Build even if it is there.")] = False,
) -> None:
    """Build a TensorRT engine of a bundle and tune it. Default: fp16, batches 1,16,100, level 3."""
    from engine.backends.trt.build import BuildOptions, Profile
    from engine.backends.trt.engine import build_engine
    from engine.registry import default_precision, refuse_elsewhere
    from lddgan.progress import to_stderr

    refuse_elsewhere(value_of(precision), engine.value)
    opened = chosen_bundle(dataset, bundle)
    options = BuildOptions.checked(
        precision=value_of(precision) or default_precision(engine.value, opened.precisions),
        profile=None if batch is None else Profile.parse(batch),
        level=level,
    )
    plans = build_engine(opened, engine.value, options, rebuild=rebuild, log=to_stderr)
    seconds = sum(plans.record.seconds.values())
    typer.echo(f"{plans.folder}: ready; building it took {seconds:.0f} s")
    again = f"lddgan verify --bundle {opened.folder} --engine {engine.value}"
    typer.echo(f"next, on a machine with the GPU: `{again}` compares it with PyTorch")


@app.command()
def verify(
    dataset: Dataset = None,
    bundle: BundleFolder = None,
    engine: Engine = EngineChoice.auto,
    device: Device = DeviceChoice.auto,
    precision: Precision = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Of several TensorRT engines, the one tuned for it.")
    ] = None,
    num: Annotated[int | None, typer.Option(min=1, help="How many images, at least.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Compare the images of this .npz, which another process sampled, with those of "
            "--engine (default torch)."
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="With --images: put the result into the engine's row in this .jsonl."),
    ] = None,
    cuda_graph: CudaGraph = True,
    as_json: Json = False,
) -> None:
    """Compare an engine with PyTorch fp32, stage by stage, on fixed noise; or images of a file."""
    from engine.verification import print_verification, refuse, verify_bundle
    from export.agreement import IMAGES
    from lddgan.errors import BadInput
    from lddgan.extras import require

    require("torch", "safetensors")
    opened = chosen_bundle(dataset, bundle)
    if images is not None:
        refuse_with_images(num, batch)
        asked = (value_of(precision), device.value)
        compare_images(images, opened, engine, asked, record, as_json)
        return
    if record is not None:
        raise BadInput("--record belongs to --images; `lddgan bench --verify` does both at once")

    def show(found: Verification) -> None:
        typer.echo(found.model_dump_json()) if as_json else print_verification(found)

    found = verify_bundle(
        opened,
        engine.value,
        value_of(precision),
        device.value,
        images=num or IMAGES,
        batch=batch,
        cuda_graph=cuda_graph,
        show=show,
    )
    refuse(found)


@app.command()
def sample(
    dataset: Dataset = None,
    bundle: BundleFolder = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A model, or the .state.pt of an unfinished one, run by PyTorch."),
    ] = None,
    engine: Engine = EngineChoice.auto,
    device: Device = DeviceChoice.auto,
    precision: Precision = None,
    num: Annotated[int, typer.Option(help="How many images.")] = 16,
    batch: Batch = None,
    seed: Seed = 0,
    first: Annotated[int, typer.Option(help="Index of the first image.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="x.png: a grid; x.npz: an array; else a folder of PNGs."),
    ] = None,
    cuda_graph: CudaGraph = True,
) -> None:
    """Make images."""
    from engine.kept_images import Origin
    from engine.output import check_output, write_images
    from engine.sampler import check_request
    from export.bundle import CHECKPOINT
    from lddgan.cores import usable_cores
    from lddgan.files import sha256_of_file
    from lddgan.progress import Meter

    check_request(num, seed, first, batch)
    made_of: Bundle | Model
    if checkpoint is None:
        made_of = opened = chosen_bundle(dataset, bundle)
        weights = opened.manifest.files[CHECKPOINT].sha256
    else:
        refuse_with_checkpoint(dataset, bundle, engine, precision)
        made_of, weights = model_at(checkpoint), sha256_of_file(checkpoint)
    out = out or Path(f"samples-{made_of.preset.name}-{seed}.png")
    check_output(out)
    asked = (engine.value, value_of(precision), device.value)
    sampler = open_sampler(made_of, *asked, batch=batch or num, cuda_graph=cuda_graph)
    with Meter("sampling", 0, num, None, unit="images") as meter:
        batches = sampler.stream(num, seed, first, batch)
        # A CPU engine keeps all cores busy itself.
        encoders = usable_cores() if sampler.backend.device == "cuda" else 0
        origin = Origin.of(sampler, weights, seed, first).model_dump_json()
        write_images(out, batches, first, meter.advance, origin=origin, processes=encoders)
    typer.echo(
        f"{out}: {num} images of {made_of.preset.name}, seed {seed}, {meter.rate:.1f} images/s, "
        f"{sampler.description}"
    )


@app.command()
def bench(
    dataset: Dataset = None,
    bundle: BundleFolder = None,
    engine: Engine = EngineChoice.auto,
    device: Device = DeviceChoice.auto,
    precision: Precision = None,
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
        choices = (engine != EngineChoice.auto, precision, not cuda_graph, bundle, seed, verify)
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
            engine.value,
            value_of(precision),
            device.value,
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


def model_at(checkpoint: Path) -> Model:
    """The model in a file of a training, finished or not; says if it is the latter."""
    from lddgan.extras import require

    require("torch", "safetensors")
    from lddgan.training.run_folder import load_model

    model = load_model(checkpoint)
    if "unfinished" in model.provenance:
        note(f"{checkpoint}: unfinished, after {model.provenance['steps']:,} steps")
    return model


def open_sampler(
    made_of: Bundle | Model, engine: Any, precision: Any, device: Any, **options: Any
) -> Sampler:
    """A bundle with an engine, or a model with PyTorch."""
    from engine.registry import open_engine, open_model
    from export.bundle import Bundle

    if isinstance(made_of, Bundle):
        return open_engine(made_of, engine, precision, device, **options)
    return open_model(made_of, device=device)


def compare_images(
    path: Path,
    opened: Bundle,
    engine: EngineChoice,
    asked: tuple[Any, Any],
    rows: Path | None,
    as_json: bool,
) -> None:
    """Compare the images of a file with an engine's; say it, and put it into a row."""
    from bench.row import record_images
    from engine.kept_images import in_words, read_images, refuse_images, verify_images
    from engine.registry import open_engine

    images, origin = read_images(path, opened)
    reference = EngineChoice.torch if engine == EngineChoice.auto else engine
    sampler = open_engine(opened, value_of(reference), *asked, batch=len(images))
    found = verify_images(images, origin, sampler)
    typer.echo(found.model_dump_json() if as_json else in_words(found))
    if rows is not None:
        record_images(found, rows)
    refuse_images(found)


def refuse_with_images(num: int | None, batch: int | None) -> None:
    """Raise BadInput for options of the other verification."""
    from lddgan.errors import BadInput

    if num is not None or batch is not None:
        raise BadInput("--images compares all images of the file; leave out --num and --batch")


def refuse_with_checkpoint(
    dataset: str | None,
    bundle: Path | None,
    engine: EngineChoice,
    precision: PrecisionChoice | None,
) -> None:
    """Raise BadInput for options that choose another model than --checkpoint, or an engine."""
    from lddgan.errors import BadInput

    if dataset is not None or bundle is not None:
        raise BadInput("--checkpoint names a model already; leave out --dataset and --bundle")
    if engine not in (EngineChoice.auto, EngineChoice.torch) or precision is not None:
        raise BadInput(
            "PyTorch runs a checkpoint, in fp32; for other engines `lddgan export` it first"
        )


def refuse_with_ladder(
    engine: EngineChoice, precision: PrecisionChoice | None, cuda_graph: bool, verify: bool
) -> None:
    """Raise BadInput for options that choose among what a ladder takes all of."""
    from lddgan.errors import BadInput

    if engine != EngineChoice.auto or precision is not None or not cuda_graph or verify:
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
    device: DeviceChoice,
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
        device.value,
        data=data,
        workers=workers_for(data, workers),
        out=out,
        show=show,
        log=note,
        **limits,
    )


def climb_ladder(
    opened: Bundle, device: DeviceChoice, out: Path | None, as_json: bool, limits: dict[str, Any]
) -> None:
    """Measure every rung and print the table."""
    from bench.ladder import print_ladder, run_ladder

    rows = run_ladder(opened, device.value, out=out, log=note, **limits)
    print_json([row.model_dump(mode="json") for row in rows]) if as_json else print_ladder(rows)


def draw_ladders(opened: Bundle, out: Path | None) -> None:
    """Draw what is kept."""
    from bench.plot import draw

    for path in draw(opened.preset.name, out, note):
        note(f"{path}: drawn")


def chosen_bundle(dataset: str | None, folder: Path | None) -> Bundle:
    """The bundle that --dataset or --bundle names, or the default one; says which."""
    from export.bundle import find_bundle, open_bundle
    from lddgan.errors import BadInput

    if dataset is not None and folder is not None:
        raise BadInput("--dataset and --bundle name two bundles; give one")
    found = folder or find_bundle(dataset)
    opened = open_bundle(found)
    if dataset is None and folder is None:
        note(f"using the bundle {found}")
    if opened.has_random_weights:
        warn_of_random_weights()
    if not opened.precisions:
        note(f"{found} holds no graphs: torch and fused run it; `lddgan export` adds them")
    return opened


def value_of(choice: StrEnum | None) -> Any:
    """What was chosen, as the packages name it."""
    return None if choice is None else choice.value


def warn_of_random_weights() -> None:
    typer.secho(
        "random weights: nobody trained this model; its images mean nothing, it is fit for timing",
        fg=typer.colors.RED,
        err=True,
    )


def note(line: str) -> None:
    typer.echo(line, err=True)


def print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=1))


def main() -> None:
    """Run the command line; errors become one line on stderr and an exit code."""
    from lddgan.errors import BadInput, LddganError, Stopped

    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order of nvidia-smi
    try:
        app(prog_name="lddgan")
    except Stopped as error:
        tell(str(error), err=True)
        sys.exit(FAILURE if error.signal is None else 128 + error.signal)
    except LddganError as error:
        typer.secho(f"{which_process()}error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(BAD_INPUT if isinstance(error, BadInput) else FAILURE)
    except OSError as error:
        where = error.filename or "input or output"
        typer.secho(f"error: {where}: {error.strerror}", fg=typer.colors.RED, err=True)
        sys.exit(FAILURE)


if __name__ == "__main__":
    main()
