"""The commands that train: `lddgan dataset ...`, `train-autoencoder` and `train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Exit, Option, Typer

from lddgan.errors import command
from lddgan.extras import require, usable_cores
from lddgan.names import Convert, DeviceName, Loss, Regulariser
from lddgan.options import Device, Key, Seed, print_once, say, workers_for

if TYPE_CHECKING:
    from lddgan.training.settings import Settings

datasets = Typer(help="Look at training images, or encode them.", no_args_is_help=True)

# ---- options: what is trained on ----

ImagesPath = Annotated[Path, Argument(help="A folder, zip, tar, LMDB, or CIFAR-10.")]
DatasetName = Annotated[str, Option(help="The model; `lddgan presets` lists them.")]
Data = Annotated[Path | None, Option(help="Folder, zip, tar, LMDB or CIFAR-10; digits needs none.")]
LmdbSize = Annotated[int | None, Option(help="Side of the images, of an LMDB with several sizes.")]
Latents = Annotated[Path | None, Option(help="From `dataset encode`, instead of --data.")]
Workers = Annotated[
    int | None, Option(min=0, help="Processes that read images; default one per core, 4 at most.")
]
OnBad = Annotated[Literal["stop", "skip"], Option(help="For images that cannot be read.")]
ConvertOption = Annotated[
    Convert, Option(help="rgb: read grey, transparent (over white), palette, CMYK and 16 bits too.")
]

# ---- options: the model ----

EncodedBy = Annotated[
    Path | None,
    Option(help="Trained by lddgan, published, or of diffusers; default that in runs/<dataset>."),
]
BegunWith = Annotated[Path | None, Option(help="Start from its weights, as train does.")]
Init = Annotated[Path | None, Option(help="Start from this model's weights, or .state.pt's.")]
RegulariserOption = Annotated[
    Regulariser | None, Option(help="Regularisation of the latents; default the preset's.")
]
ImageSize = Annotated[int | None, Option(help="Side of the images; default the preset's.")]
PerceptualWeight = Annotated[float | None, Option(min=0, help="Of LPIPS; 0 needs no VGG network.")]
Vgg = Annotated[Path | None, Option(help="vgg16-397923af.pth; it is downloaded if missing.")]
LossOption = Annotated[Loss | None, Option(help="Adversarial alone; with L1; or with weighted L1.")]
Delta = Annotated[float | None, Option(min=0, help="Delta of Weighted Learning.")]
Values = Annotated[
    list[str] | None, Option("--set", help="A value of the preset: generator.nf=32; repeatable.")
]

# ---- options: the run ----

Out = Annotated[Path | None, Option(help="Folder; default runs/<dataset>.")]
Epochs = Annotated[int | None, Option(min=1, help="Epochs in all; default the preset's.")]
Steps = Annotated[int | None, Option(min=0, help="Steps in all, instead of epochs.")]
TOTALS = "--steps and --epochs are totals: --steps 4 after 2 makes 2 more"
Resume = Annotated[bool, Option(help=f"Continue the run in the folder; {TOTALS}.")]
KeepEvery = Annotated[int | None, Option(min=1, help="Keep a checkpoint every N steps.")]
DiscardState = Annotated[bool, Option(help="Remove the state, which --resume needs, at the end.")]
Accumulate = Annotated[int, Option(min=1, help="Compute each batch in so many parts.")]
Bf16 = Annotated[bool, Option(help="Compute in bfloat16; losses stay in float32.")]
ChannelsLast = Annotated[bool, Option(help="Keep channels last in memory.")]
Compile = Annotated[bool, Option("--compile", help="Run the networks through torch.compile.")]


@datasets.command("check")
def check_dataset(
    path: ImagesPath,
    dataset: Annotated[str | None, Option(help="A model, whose image size is taken.")] = None,
    size: Annotated[int, Option(min=8, help="Check for this image size.")] = 256,
    convert: ConvertOption = "strict",
    lmdb_size: LmdbSize = None,
) -> None:
    """List every image that cannot be trained on, and count them; exit code 1 if there are any."""
    from lddgan.data.check import Summary, check_images
    from lddgan.data.open_source import open_source
    from lddgan.presets import get_preset
    from lddgan.progress import Meter

    size = size if dataset is None else get_preset(dataset).image_size
    source = open_source(path, convert, lmdb_size)
    summary = Summary(source)
    with Meter("looking", 0, len(source), None, unit="images") as meter:
        for look in check_images(source, size, usable_cores()):
            if look.bad:
                say(f"{look.name} {look.bad}")
            summary.add(look)
            meter.advance(1)
    for line in summary.lines():
        say(line)
    if summary.bad:
        raise Exit(1)


@datasets.command("encode")
def encode_dataset(
    path: ImagesPath,
    dataset: DatasetName,
    out: Annotated[Path, Option(help="Folder to write; new or empty.")],
    autoencoder: EncodedBy = None,
    flip: Annotated[bool | None, Option(help="Encode mirrored too; default the preset's.")] = None,
    batch: Annotated[int, Option(min=1, help="Images that are encoded at once.")] = 64,
    on_bad: OnBad = "stop",
    convert: ConvertOption = "strict",
    device: Device = "auto",
    workers: Workers = None,
    lmdb_size: LmdbSize = None,
    key: Key = None,
) -> None:
    """Encode all images once, for `train --latents`."""
    require("torch", "safetensors")
    from lddgan.preset import check_learned
    from lddgan.presets import get_preset
    from lddgan.training.encode import encode_images
    from lddgan.training.inputs import find_autoencoder, open_autoencoder, open_images
    from lddgan.training.ranks import kind_of

    preset = get_preset(dataset)
    check_learned(preset, train_command({"dataset": dataset, "data": path}))
    autoencoder = autoencoder or find_autoencoder(out, dataset)
    trained = open_autoencoder(autoencoder, preset, key)
    count = encode_images(
        out,
        trained,
        open_images(trained.preset, path, convert, lmdb_size),
        flip=trained.preset.training.flip if flip is None else flip,
        device=kind_of(None if device == "auto" else device),
        batch=batch,
        workers=workers_for(path, workers),
        on_bad=on_bad,
        source=str(path),
    )
    print_once(f"{out}: the latents of {count:,} images")
    given = {"dataset": dataset, "autoencoder": autoencoder, "key": key, "latents": out}
    print_once(f"next: {train_command(given)}")


def train_autoencoder(
    dataset: DatasetName,
    data: Data = None,
    out: Out = None,
    regulariser: RegulariserOption = None,
    image_size: ImageSize = None,
    autoencoder: BegunWith = None,
    key: Key = None,
    perceptual_weight: PerceptualWeight = None,
    vgg: Vgg = None,
    seed: Seed = 0,
    epochs: Epochs = None,
    steps: Steps = None,
    resume: Resume = False,
    keep_every: KeepEvery = None,
    discard_state: DiscardState = False,
    on_bad: OnBad = "stop",
    convert: ConvertOption = "strict",
    device: Device = "auto",
    workers: Workers = None,
    bf16: Bf16 = False,
    channels_last: ChannelsLast = False,
    values: Values = None,
    lmdb_size: LmdbSize = None,
) -> None:
    """Train an autoencoder on images and measure the scale factor of its latents."""
    run = {"seed": seed, "epochs": epochs, "steps": steps, "resume": resume, "on_bad": on_bad}
    run |= {"keep_every": keep_every, "discard_state": discard_state}
    run |= {"bf16": bf16, "channels_last": channels_last}
    settings = settings_of(dataset, data, out, device, workers, run)
    from lddgan.preset import check_learned, parsed, resized
    from lddgan.presets import get_preset
    from lddgan.training.autoencoder import train_autoencoder as train
    from lddgan.training.inputs import open_autoencoder, open_images
    from lddgan.training.run_folder import AUTOENCODER_FILE

    preset = get_preset(dataset)
    check_learned(preset, train_command({"dataset": dataset, "data": data}))
    changes: dict[str, Any] = {} if regulariser is None else {"autoencoder.kind": regulariser}
    if perceptual_weight is not None:
        changes["autoencoder_training.perceptual_weight"] = perceptual_weight
    preset = resized(preset, image_size, changes | parsed(values or []))
    images = open_images(preset, data, convert, lmdb_size)
    start = None if autoencoder is None else open_autoencoder(autoencoder, preset, key)
    trained = train(preset, images, settings, start=start, vgg=vgg)
    path = settings.out / AUTOENCODER_FILE
    print_once(f"{path}: trained; its scale factor is {trained.preset.scale_factor:.4g}")
    given = {"dataset": dataset, "autoencoder": path, "data": data, "out": out}
    given |= {"convert": None if convert == "strict" else convert, "lmdb-size": lmdb_size}
    given |= {"on-bad": None if on_bad == "stop" else on_bad}
    print_once(f"next: {train_command(given)}")


def train(
    dataset: DatasetName,
    data: Data = None,
    autoencoder: EncodedBy = None,
    key: Key = None,
    latents: Latents = None,
    init: Init = None,
    out: Out = None,
    image_size: ImageSize = None,
    loss: LossOption = None,
    delta: Delta = None,
    seed: Seed = 0,
    epochs: Epochs = None,
    steps: Steps = None,
    resume: Resume = False,
    keep_every: KeepEvery = None,
    discard_state: DiscardState = False,
    on_bad: OnBad = "stop",
    convert: ConvertOption = "strict",
    device: Device = "auto",
    workers: Workers = None,
    accumulate: Accumulate = 1,
    bf16: Bf16 = False,
    channels_last: ChannelsLast = False,
    compile_: Compile = False,
    values: Values = None,
    lmdb_size: LmdbSize = None,
) -> None:
    """Train the diffusion GAN on images, or on their latents."""
    run = {"seed": seed, "epochs": epochs, "steps": steps, "resume": resume, "on_bad": on_bad}
    run |= {"keep_every": keep_every, "discard_state": discard_state, "accumulate": accumulate}
    run |= {"bf16": bf16, "channels_last": channels_last, "compile": compile_}
    settings = settings_of(dataset, data or latents, out, device, workers, run)
    from lddgan.preset import parsed, with_loss, with_values
    from lddgan.presets import get_preset
    from lddgan.training.generator import train_generator
    from lddgan.training.inputs import open_codec, open_latent_images
    from lddgan.training.run_folder import MODEL_FILE, load_generator

    asked, changes = get_preset(dataset), parsed(values or [])
    trained = open_codec(
        asked,
        settings.out,
        autoencoder=autoencoder,
        key=key,
        latents=latents,
        image_size=image_size,
        changes=changes,
    )
    preset = trained.preset
    if loss is not None or delta is not None:
        preset = with_loss(preset, loss or preset.loss, delta)
    preset = with_values(preset, changes)
    images = open_latent_images(trained, data, latents, convert, lmdb_size)
    start = None if init is None else load_generator(init)
    train_generator(preset, trained, images, settings, start=start)
    path = settings.out / MODEL_FILE
    bundle = Path("exports", settings.out.resolve().name)  # one for each run of a preset
    then = command("sample", "--bundle", bundle)
    export = command("export", "--checkpoint", path, "--out", bundle)
    print_once(f"{path}: trained; next: {export}, then {then}")


def train_command(given: dict[str, Any]) -> str:
    """`lddgan train` with the options that are given, as it is typed."""
    words: list[object] = []
    for name, value in given.items():
        for each in value if isinstance(value, list) else [value]:
            words += [] if each is None else [f"--{name}", each]
    return command("train", *words)


def settings_of(
    dataset: str,
    images: Path | None,
    out: Path | None,
    device: DeviceName,
    workers: int | None,
    run: dict[str, Any],
) -> Settings:
    """How a training is run, from its options. Raises LddganError if a package is missing."""
    require("torch", "safetensors", "tensorboard", "matplotlib")
    from lddgan.training.settings import Settings

    return Settings(
        out=out or Path("runs", dataset),
        device=None if device == "auto" else device,
        workers=workers_for(images, workers),
        source="scikit-learn's digits" if images is None else str(images),
        command=["lddgan", *sys.argv[1:]],
        **run,
    )
