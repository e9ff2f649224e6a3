"""The commands that train: `lddgan dataset ...`, `train-autoencoder` and `train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lddgan.names import Loss, Regulariser
from lddgan.options import Device, Seed, tell, workers_for

if TYPE_CHECKING:
    from lddgan.checkpoint import TrainedAutoencoder
    from lddgan.data.images import Images
    from lddgan.preset import Preset

datasets = typer.Typer(help="Look at training images, or encode them.", no_args_is_help=True)


DatasetName = Annotated[str, typer.Option(help="cifar10, celeba_256, lsun or digits: the model.")]
Data = Annotated[
    Path | None,
    typer.Option(help="A folder of images, zip file, LMDB or CIFAR-10; digits needs none."),
]
Out = Annotated[Path | None, typer.Option(help="Folder; default runs/<dataset>.")]
Epochs = Annotated[int | None, typer.Option(help="Instead of the preset's.")]
Steps = Annotated[int | None, typer.Option(help="Instead of epochs.")]
Resume = Annotated[bool, typer.Option(help="Go on with what is in the folder.")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that read images; default 4, or a core each.")
]
OnBad = Annotated[Literal["stop", "skip"], typer.Option(help="At an image that cannot be read.")]
Values = Annotated[
    list[str] | None,
    typer.Option("--set", help="One value of the preset, e.g. generator.nf=32; repeatable."),
]
Bf16 = Annotated[bool, typer.Option(help="Compute in bfloat16; losses stay in float32.")]
ChannelsLast = Annotated[bool, typer.Option(help="Keep channels last in memory.")]


@datasets.command("check")
def check_dataset(
    path: Annotated[Path, typer.Argument(help="A folder, zip file, LMDB, or CIFAR-10.")],
    dataset: Annotated[str | None, typer.Option(help="Whose size of images is taken.")] = None,
    size: Annotated[int, typer.Option(min=8, help="Side of the images to be trained on.")] = 256,
) -> None:
    """List every image that cannot be trained on, and why; exit code 1 if there are any."""
    from lddgan.data.check import look
    from lddgan.data.open_source import open_source
    from lddgan.extras import usable_cores
    from lddgan.presets import get_preset
    from lddgan.progress import Meter

    size = size if dataset is None else get_preset(dataset).image_size
    source, bad = open_source(path), 0
    with Meter("looking", 0, len(source), None, unit="images") as meter:
        for looked in look(source, size, usable_cores()):
            bad += len(looked.bad)
            for line in looked.bad:
                typer.echo(line)
            meter.advance(looked.images)
    typer.echo(f"{path}: {len(source):,} images, {bad:,} bad")
    if bad:
        raise typer.Exit(1)


@datasets.command("encode")
def encode_dataset(
    path: Annotated[Path, typer.Argument(help="A folder, zip file, LMDB, or CIFAR-10.")],
    dataset: DatasetName,
    autoencoder: Annotated[
        Path, typer.Option(help="What `train-autoencoder` wrote, or a published .ckpt.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Mirrored images too; default the preset's."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images that are encoded at once.")] = 64,
    on_bad: OnBad = "stop",
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Encode all images once, for `train --latents`."""
    from lddgan.extras import require

    require("torch", "safetensors")
    from lddgan.data.images import ImageFiles
    from lddgan.data.open_source import open_source
    from lddgan.presets import get_preset
    from lddgan.training.encode import encode_images
    from lddgan.training.ranks import kind_of

    stage = autoencoder_at(autoencoder, get_preset(dataset))
    count = encode_images(
        out,
        stage,
        ImageFiles(open_source(path), stage.preset.image_size),
        flip=stage.preset.training.flip if flip is None else flip,
        device=kind_of(None if device == "auto" else device),
        batch=batch,
        workers=workers_for(path, workers),
        on_bad=on_bad,
        source=str(path),
    )
    tell(f"{out}: the latents of {count:,} images")
    tell(f"next: `lddgan train --dataset {dataset} --autoencoder {autoencoder} --latents {out}`")


def train_autoencoder(
    dataset: DatasetName,
    data: Data = None,
    out: Out = None,
    regulariser: Annotated[
        Regulariser | None, typer.Option(help="Of the latents; default the preset's.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side, instead of the preset's.")] = None,
    autoencoder: Annotated[
        Path | None, typer.Option(help="Begin with it: .safetensors, or a published .ckpt.")
    ] = None,
    perceptual_weight: Annotated[
        float | None, typer.Option(min=0, help="Of LPIPS; 0 does without its VGG network.")
    ] = None,
    vgg: Annotated[
        Path | None, typer.Option(help="vgg16-397923af.pth; without it LPIPS downloads it.")
    ] = None,
    seed: Seed = 0,
    epochs: Epochs = None,
    steps: Steps = None,
    resume: Resume = False,
    on_bad: OnBad = "stop",
    device: Device = "auto",
    workers: Workers = None,
    bf16: Bf16 = False,
    channels_last: ChannelsLast = False,
    values: Values = None,
) -> None:
    """Train an autoencoder on images and measure the scale factor of its latents."""
    from lddgan.extras import require

    require("torch", "safetensors", "tensorboard", "matplotlib")
    from lddgan.preset import parsed, resized, with_values
    from lddgan.presets import get_preset
    from lddgan.training.autoencoder import train_autoencoder as train
    from lddgan.training.run_folder import AUTOENCODER_FILE
    from lddgan.training.settings import Settings

    preset = get_preset(dataset)
    if image_size is not None:
        preset = resized(preset, image_size)
    if regulariser is not None:
        preset = with_values(preset, {"autoencoder.kind": regulariser})
    if perceptual_weight is not None:
        preset = with_values(preset, {"autoencoder_training.perceptual_weight": perceptual_weight})
    preset = with_values(preset, parsed(values or []))
    settings = Settings(
        out=out or run_folder(dataset),
        seed=seed,
        epochs=epochs,
        steps=steps,
        resume=resume,
        device=None if device == "auto" else device,
        workers=workers_for(data, workers),
        on_bad=on_bad,
        bf16=bf16,
        channels_last=channels_last,
        source=name_of(data),
        command=["lddgan", *sys.argv[1:]],
    )
    images = images_at(preset, data)
    start = None if autoencoder is None else autoencoder_at(autoencoder, preset)
    trained = train(preset, images, settings, start=start, vgg=vgg)
    path = settings.out / AUTOENCODER_FILE
    tell(f"{path}: trained; its scale factor is {trained.preset.scale_factor:.4g}")
    given = "" if data is None else f" --data {data}"
    tell(f"next: `lddgan train --dataset {dataset} --autoencoder {path}{given}`")


def train(
    dataset: DatasetName,
    data: Data = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option(
            help="What `train-autoencoder` wrote, or a published .ckpt; default "
            "runs/<dataset>/autoencoder.safetensors."
        ),
    ] = None,
    latents: Annotated[
        Path | None, typer.Option(help="Written by `dataset encode`, instead of --data.")
    ] = None,
    out: Out = None,
    loss: Annotated[
        Loss | None,
        typer.Option(help="adversarial; and reconstruction; and that with Weighted Learning."),
    ] = None,
    delta: Annotated[float | None, typer.Option(min=0, help="Of Weighted Learning.")] = None,
    seed: Seed = 0,
    epochs: Epochs = None,
    steps: Steps = None,
    resume: Resume = False,
    on_bad: OnBad = "stop",
    device: Device = "auto",
    workers: Workers = None,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts of a batch that are computed one after another.")
    ] = 1,
    bf16: Bf16 = False,
    channels_last: ChannelsLast = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Run the networks through torch.compile.")
    ] = False,
    values: Values = None,
) -> None:
    """Train the diffusion GAN on the latents of images."""
    from lddgan.extras import require

    require("torch", "safetensors", "tensorboard", "matplotlib")
    from lddgan.errors import BadInput
    from lddgan.preset import parsed, with_loss, with_values
    from lddgan.presets import get_preset
    from lddgan.training.generator import train_generator
    from lddgan.training.latents import open_latents
    from lddgan.training.run_folder import AUTOENCODER_FILE, MODEL_FILE
    from lddgan.training.settings import Settings

    asked = get_preset(dataset)
    if data is not None and latents is not None:
        raise BadInput("--data and --latents name two sets of images; give one")
    settings = Settings(
        out=out or run_folder(dataset),
        seed=seed,
        epochs=epochs,
        steps=steps,
        resume=resume,
        device=None if device == "auto" else device,
        workers=workers_for(data or latents, workers),
        on_bad=on_bad,
        accumulate=accumulate,
        bf16=bf16,
        channels_last=channels_last,
        compile=compile_,
        source=name_of(data or latents),
        command=["lddgan", *sys.argv[1:]],
    )
    if autoencoder is None:
        autoencoder = run_folder(dataset) / AUTOENCODER_FILE
        if not autoencoder.exists():
            raise BadInput(
                f"give the autoencoder whose latents are to be learned (--autoencoder); `lddgan "
                f"train-autoencoder --dataset {dataset}` trains one"
            )
        tell(f"using {autoencoder}")
    stage = autoencoder_at(autoencoder, asked)
    preset = stage.preset
    if loss is not None or delta is not None:
        preset = with_loss(preset, loss or preset.loss, delta)
    preset = with_values(preset, parsed(values or []))
    images = images_at(preset, data, stage) if latents is None else open_latents(latents, stage)
    train_generator(preset, stage, images, settings)
    path = settings.out / MODEL_FILE
    tell(
        f"{path}: trained; next: `lddgan export --checkpoint {path}`, then "
        f"`lddgan sample --bundle exports/{preset.name}`"
    )


def run_folder(dataset: str) -> Path:
    """Where a run is kept unless --out says otherwise."""
    return Path("runs") / dataset


def name_of(images: Path | None) -> str:
    """What a checkpoint says of where its images were."""
    return "scikit-learn's digits" if images is None else str(images)


def images_at(preset: Preset, data: Path | None, stage: TrainedAutoencoder | None = None) -> Images:
    """The images of --data. Raises BadInput if there are none.

    Without --data the digits, which come with scikit-learn; as latents where a `stage` is given,
    since they are so small.
    """
    from lddgan.data.images import ImageFiles, InMemory
    from lddgan.data.open_source import open_source
    from lddgan.errors import BadInput
    from lddgan.extras import require

    if data is not None:
        return ImageFiles(open_source(data), preset.image_size)
    if preset.name != "digits":
        raise BadInput(
            f"lddgan brings no images of {preset.name}; give a folder, zip file or LMDB (--data)"
        )
    require("sklearn")
    from lddgan.data.digits import SIZE, digits
    from lddgan.training.latents import latents_of

    if preset.image_size != SIZE:
        raise BadInput(
            f"the digits have {SIZE} pixels a side, not {preset.image_size}; give other images "
            "(--data)"
        )
    return InMemory(digits()) if stage is None else latents_of(stage.autoencoder, digits(), "cpu")


def autoencoder_at(path: Path, preset: Preset) -> TrainedAutoencoder:
    """The autoencoder in a file of ours, or in a published one. Raises BadInput if for another."""
    from lddgan.checkpoint import build_autoencoder, load_autoencoder
    from lddgan.errors import BadInput
    from lddgan.published.reader import import_autoencoder

    if path.suffix != ".safetensors":
        part = import_autoencoder(preset, path)
        return build_autoencoder(part.preset, part.tensors, part.record)
    stage = load_autoencoder(path)
    if stage.preset.name != preset.name:
        raise BadInput(f"{path} was trained for {stage.preset.name}; you asked for {preset.name}")
    return stage
