"""The files of a tiny published model; images and models for the training commands."""

from pathlib import Path

import pytest

from lddgan.checkpoint import random_model, save_checkpoint
from tests.lddgan.runs import AUTOENCODER, MODEL, write_photos
from tests.lddgan.training.support import random_autoencoder
from tests.lddgan.training.support import tiny_preset as tiny_digits
from tests.published_files import Tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """16 images of 32x32."""
    return write_photos(tmp_path_factory.mktemp("photos") / "32", 32)


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """A folder with a random autoencoder, another one, and a model, all tiny ones of digits."""
    folder, preset = tmp_path_factory.mktemp("files"), tiny_digits()
    trained = random_autoencoder(preset)
    save_checkpoint(folder / AUTOENCODER, trained)
    save_checkpoint(folder / MODEL, random_model(preset))
    trained.autoencoder.decoder.conv_out.bias.data += 1
    save_checkpoint(folder / "other.safetensors", trained)
    return folder
