"""The commands that run bundles: `lddgan doctor`, `build`, `verify`, `sample` and `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from engine.registry import ENGINES
from engine.serving.limits import BATCH
from export.commands import BundleFolder, chosen_bundle, note_unfinished
from lddgan.errors import BadInput, LddganError, command
from lddgan.extras import SERVE, require
from lddgan.names import Precision
from lddgan.options import Dataset, Device, Json, Seed, print_json, print_once

if TYPE_CHECKING:
    from engine.sampler import Sampler
    from engine.verification import Verification
    from export.bundle import Bundle
    from lddgan.checkpoint import Model

SLOT_IMAGES: Final = 840  # that `verify --slots` compares

Engine = Annotated[
    str, typer.Option(metavar=f"[auto|{'|'.join(ENGINES)}]", help="What runs the model.")
]
EnginePrecision = Annotated[
    Precision | None,
    typer.Option(
        help="Default fp16 for TensorRT and fused, if the bundle has it, else fp32; bf16 is for "
        "fused, int8 for CPUs."
    ),
]
Batch = Annotated[int | None, typer.Option(help="Images per batch.")]
CudaGraph = Annotated[
    bool, typer.Option(help="Run TensorRT or fused as one CUDA graph, or step by step.")
]


def doctor(as_json: Json = False) -> None:
    """List the engines: which run here, and why the others do not."""
    from engine.doctor import examine, print_report

    report = examine()
    print_json(report.model_dump()) if as_json else print_report(report)


def build(
    dataset: Dataset = None,
    bundle: BundleFolder = None,
    engine: Annotated[
        str, typer.Option(help="trt: for this machine's GPU; trt-rtx: for GeForce RTX cards.")
    ] = "trt",
    precision: EnginePrecision = None,
    batch: Annotated[
        str | None,
        typer.Option(help="MIN,OPT,MAX: the batches it takes, and the one it is tuned for."),
    ] = None,
    level: Annotated[
        int | None, typer.Option(min=0, max=5, help="Higher builds slower and runs faster.")
    ] = None,
    rebuild: Annotated[bool, typer.Option(help="Build even if it is there.")] = False,
) -> None:
    """Build a TensorRT engine of a bundle and tune it. Default: fp16, batches 1,16,100, level 3."""
    from engine.registry import check_precision, default_precision, find_engine
    from lddgan.progress import to_stderr

    build = find_engine(engine).build
    if build is None:
        names = [name for name in ENGINES if find_engine(name).build is not None]
        raise BadInput(f"{engine} runs without being built; --engine is {' or '.join(names)}")
    check_precision(precision, engine)
    opened = chosen_bundle(dataset, bundle)
    dtype = precision or default_precision(engine, "cuda", opened.precisions)
    options = {"batch": batch, "level": level, "rebuild": rebuild, "log": to_stderr}
    print_once(build(opened, dtype, **options))
    again = command("verify", "--bundle", opened.folder, "--engine", engine)
    print_once(f"next, on a machine with the GPU: {again} compares it with PyTorch")


def verify(
    dataset: Dataset = None,
    bundle: BundleFolder = None,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: EnginePrecision = None,
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
    slots: Annotated[
        bool, typer.Option("--slots", help="Instead: do images change with their batch's others?")
    ] = False,
    cuda_graph: CudaGraph = True,
    as_json: Json = False,
) -> None:
    """Compare an engine, or images of a file, with PyTorch fp32 on fixed noise."""
    if slots:
        if images is not None:
            raise BadInput("--slots checks an engine, --images a file; give one of them")
        verify_slots(chosen_bundle(dataset, bundle), engine, precision, device, batch, num, as_json)
        return
    from engine.verification import refuse
    from engine.verify import print_verification, verify_bundle
    from export.agreement import IMAGES

    require("torch", "safetensors")
    opened = chosen_bundle(dataset, bundle)
    if images is not None:
        if num is not None or batch is not None:
            raise BadInput("--images compares all images of the file; leave out --num and --batch")
        compare_images(images, opened, engine, (precision, device), as_json)
        return

    def show(found: Verification) -> None:
        print_json(found.model_dump_json()) if as_json else print_verification(found)

    found = verify_bundle(
        opened,
        engine,
        precision,
        device,
        images=num or IMAGES,
        batch=batch,
        cuda_graph=cuda_graph,
        show=show,
    )
    refuse(found)


def sample(
    dataset: Dataset = None,
    bundle: BundleFolder = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A model, or the .state.pt of an unfinished one, run by PyTorch."),
    ] = None,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: EnginePrecision = None,
    num: Annotated[int, typer.Option(help="How many images.")] = 16,
    batch: Batch = None,
    seed: Seed = 0,
    first: Annotated[int, typer.Option(help="Index of the first image.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="x.png: a grid; x.npz: an array; else a folder of PNGs."),
    ] = None,
    cuda_graph: CudaGraph = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Make what is missing in a folder or .npz.")
    ] = False,
) -> None:
    """Make images."""
    from engine.kept_images import Origin
    from engine.sampler import check_request
    from engine.sampling import Sampling, find_sampling, write_sampling
    from export.bundle import CHECKPOINT, MANIFEST
    from lddgan.files import sha256_of_file, sole_writer
    from lddgan.pictures import form_of

    check_request(num, seed, first, batch)
    made_of: Bundle | Model
    exported = None
    if checkpoint is None:
        made_of = opened = chosen_bundle(dataset, bundle)
        weights = opened.manifest.files[CHECKPOINT].sha256
        exported = sha256_of_file(opened.folder / MANIFEST)
    else:
        refuse_with_checkpoint(dataset, bundle, engine, precision)
        made_of, weights = model_at(checkpoint), sha256_of_file(checkpoint)
    out = out or Path(f"samples-{made_of.preset.name}-{seed}.png")
    with sole_writer(out, beside=form_of(out) != "folder"):
        begun = find_sampling(out, resume)
        asked = (engine, precision, device)
        sampler = open_sampler(made_of, *asked, batch=batch or num, cuda_graph=cuda_graph)
        made = Origin.of(sampler, weights, seed, first).model_dump()
        made |= {"num": num, "batch": batch, "chunk": sampler.chunk, "bundle": exported}
        meter = write_sampling(out, sampler, Sampling(**made), begun)
    print_once(
        f"{out}: {num} images of {made_of.preset.name}, seed {seed}, {meter.rate:.1f} images/s, "
        f"{sampler.description}"
    )


def serve(
    dataset: Dataset = None,
    bundle: Annotated[
        list[Path] | None, typer.Option(help="Folder of a bundle; repeatable.")
    ] = None,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: EnginePrecision = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8080,
    batch: Annotated[int, typer.Option(min=1, help="Images computed at once, at most.")] = BATCH,
    wait_ms: Annotated[
        float, typer.Option(min=0, help="How long the first image of a batch waits for others.")
    ] = 3,
    queue: Annotated[int, typer.Option(min=1, help="Images that wait; beyond: 503.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for one image.")] = 10,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds for what is in flight at SIGTERM.")
    ] = 20,
    fast: Annotated[
        bool, typer.Option("--fast", help="Batches of any shape: the same to one grey level.")
    ] = False,
    cache_mb: Annotated[int, typer.Option(min=0, help="Memory for images made before.")] = 64,
    token_file: Annotated[
        Path | None, typer.Option(help="Only who sends a token of this file may ask.")
    ] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="A line of JSON on stderr for every request.")
    ] = False,
) -> None:
    """Serve images by their addresses: /v1/images/MODEL/SEED/INDEX.png, and a page to play with."""
    require(*SERVE)
    from engine.serving.app import open_service
    from engine.serving.limits import Limits, read_tokens
    from engine.serving.server import listen, run

    if dataset is not None and bundle:
        raise BadInput("--dataset and --bundle name bundles; give one of them")
    folders: list[Path | None] = [*bundle] if bundle else [None]
    opened = [chosen_bundle(dataset, folder) for folder in folders]
    tokens = () if token_file is None else read_tokens(token_file)
    limits = Limits(
        batch, wait_ms / 1000, queue, timeout, drain, fast, cache_mb, tokens, access_log
    )
    socket = listen(host, port)
    with open_service(opened, (engine, precision, device), limits) as service:
        for model in service.models.values():
            print_once(f"{model.name}@{model.digest}: {model.in_words}")
        place = f"[{host}]" if ":" in host else host
        print_once(f"http://{place}:{socket.getsockname()[1]}")
        run(service, socket)


def model_at(checkpoint: Path) -> Model:
    """Load the model of a training, finished or not. Says so if it is not finished."""
    require("torch", "safetensors")
    from lddgan.training.run_folder import load_model

    model = load_model(checkpoint)
    note_unfinished(model, checkpoint)
    return model


def open_sampler(
    made_of: Bundle | Model, engine: Any, precision: Any, device: Any, **options: Any
) -> Sampler:
    """Open a bundle with an engine, or a model with PyTorch."""
    from engine.registry import open_engine, open_model
    from export.bundle import Bundle

    if isinstance(made_of, Bundle):
        return open_engine(made_of, engine, precision, device, **options)
    return open_model(made_of, device=device)


def compare_images(
    path: Path, opened: Bundle, engine: str, asked: tuple[Any, Any], as_json: bool
) -> None:
    """Compare the images of a file with an engine's and print the result."""
    from engine.kept_images import in_words, read_images, refuse_images, verify_images
    from engine.registry import open_engine

    images, origin = read_images(path, opened)
    reference = "torch" if engine == "auto" else engine
    sampler = open_engine(opened, reference, *asked, batch=len(images))
    found = verify_images(images, origin, sampler)
    lines = [found.model_dump_json()] if as_json else in_words(found).splitlines()
    for line in lines:
        print_json(line) if as_json else print_once(line)
    refuse_images(found)


def verify_slots(
    opened: Bundle,
    engine: str,
    precision: Any,
    device: Any,
    batch: int | None,
    num: int | None,
    as_json: bool,
) -> None:
    """Compare images in other company with what they are in their own batches."""
    from engine.registry import open_engine
    from engine.slots import check_slots, whole_batch

    with open_engine(opened, engine, precision, device, batch=batch or BATCH) as sampler:
        found = check_slots(sampler, whole_batch(sampler, batch or BATCH), num or SLOT_IMAGES)
        told = f"{found.changed} of {found.compared} images changed in other company"
        line = f"{sampler.description}, batches of {found.batch}: {told}"
    print_json(found._asdict()) if as_json else print_once(line)
    if found.changed:
        raise LddganError(f"{line}; `lddgan serve` computes blocks of one seed with this engine")


def refuse_with_checkpoint(
    dataset: str | None, bundle: Path | None, engine: str, precision: Precision | None
) -> None:
    """Raise BadInput for options that choose another model than --checkpoint, or an engine."""
    if dataset is not None or bundle is not None:
        raise BadInput("--checkpoint names a model already; leave out --dataset and --bundle")
    if engine not in ("auto", "torch") or precision is not None:
        raise BadInput(
            "PyTorch runs a checkpoint, in fp32; for other engines `lddgan export` it first"
        )
