"""What the training commands are given: images or latents, and the autoencoder of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lddgan.checkpoint import TrainedAutoencoder, build_autoencoder, is_ours, load_autoencoder
from lddgan.data.images import DIGIT_SIZE, ImageFiles, Images, InMemory, digits
from lddgan.data.open_source import open_source
from lddgan.errors import BadInput, command
from lddgan.names import Convert
from lddgan.options import print_once
from lddgan.preset import OF_AUTOENCODER, Preset, check_learned, differences, resized
from lddgan.published.diffusers import weights_of
from lddgan.published.reader import check_keys, import_autoencoder, notes_of
from lddgan.training.latents import latents_of, open_latents
from lddgan.training.run_folder import AUTOENCODER_FILE


def open_codec(
    preset: Preset,
    out: Path,
    *,
    autoencoder: Path | None,
    key: list[str] | None,
    latents: Path | None,
    image_size: int | None,
    changes: Mapping[str, Any],
) -> TrainedAutoencoder:
    """The autoencoder of a training: given, found, or where none is learned, of the preset itself.

    Raises BadInput for options that do not suit it.
    """
    if preset.autoencoder.learned:
        if image_size is not None:
            how = command("train-autoencoder", "--dataset", preset.name, "--image-size", image_size)
            raise BadInput(f"the autoencoder decides the size of the images; {how} trains another")
        return open_autoencoder(autoencoder or find_autoencoder(out, preset.name), preset, key)
    options = {"--autoencoder": autoencoder, "--key": key, "--latents": latents}
    if given := [name for name, value in options.items() if value]:
        check_learned(preset, f"leave out {' and '.join(given)}")
    return build_autoencoder(resized(preset, image_size, changes), {}, {})


def find_autoencoder(out: Path, dataset: str) -> Path:
    """The autoencoder in the run's folder, else in that of the data set; says which."""
    for folder in (out, Path("runs", dataset)):
        if (path := folder / AUTOENCODER_FILE).exists():
            print_once(f"using {path}")
            return path
    how = command("train-autoencoder", "--dataset", dataset)
    raise BadInput(f"give the autoencoder of the latents (--autoencoder); {how} trains one")


def open_autoencoder(path: Path, preset: Preset, keys: list[str] | None) -> TrainedAutoencoder:
    """Load an autoencoder of ours or a published one. Raises BadInput if it does not fit.

    One that was trained for another preset fits if both have the same images and latents.
    """
    path = weights_of(path)
    if not is_ours(path):
        part = import_autoencoder(preset, path, keys or ())
        check_keys(keys or (), part)
        for sentence in notes_of(preset, part):
            print_once(sentence)
        return build_autoencoder(part.preset, part.tensors, part.record)
    check_keys(keys or ())
    trained = load_autoencoder(path)
    if trained.preset.name == preset.name:
        return trained
    for key, value in differences(preset, trained.preset).items():
        if key.partition(".")[0] in OF_AUTOENCODER:
            found = f"was trained for {trained.preset.name} ({key} {value})"
            raise BadInput(f"{path} {found}; you asked for {preset.name}")
    scaled = preset.model_copy(update={"scale_factor": trained.preset.scale_factor})
    return replace(trained, preset=scaled)


def open_latent_images(
    trained: TrainedAutoencoder,
    data: Path | None,
    latents: Path | None,
    convert: Convert,
    side: int | None,
) -> Images:
    """Open what a generator is trained on: images, or latents of them. Raises BadInput."""
    if latents is None:
        images = open_images(trained.preset, data, convert, side)
        if isinstance(images, InMemory):  # the digits: encoded once
            return latents_of(trained.autoencoder, images.images)
        return images
    if data is not None:
        raise BadInput("--data and --latents name two sets of images; give one")
    if side is not None or convert != "strict":
        raise BadInput("--latents are encoded: `dataset encode` takes --lmdb-size and --convert")
    return open_latents(latents, trained)


def open_images(preset: Preset, data: Path | None, convert: Convert, side: int | None) -> Images:
    """Open the images of --data, saying what is left out of them, or scikit-learn's digits.

    Raises BadInput if there are none, or --convert or --lmdb-size (`side`) without --data.
    """
    size = preset.image_size
    if data is not None:
        source = open_source(data, convert, side)
        for line in source.told():
            print_once(line, err=True)
        return ImageFiles(source, size)
    if side is not None or convert != "strict":
        raise BadInput("--lmdb-size and --convert are of --data; give it too, or leave them out")
    if preset.name != "digits" or size != DIGIT_SIZE:
        raise BadInput(f"lddgan brings no images of {preset.name} of {size}x{size}; give --data")
    return InMemory(digits())
