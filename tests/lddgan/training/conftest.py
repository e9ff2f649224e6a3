"""Random autoencoders of each kind, and pictures as files."""

from __future__ import annotations

import pytest

from lddgan.checkpoint import TrainedAutoencoder
from lddgan.data.images import ImageFiles
from tests.lddgan.training.stored import PRESETS, image_files
from tests.lddgan.training.support import random_autoencoder


@pytest.fixture(scope="session")
def trained_by_kind() -> dict[str, TrainedAutoencoder]:
    return {kind: random_autoencoder(preset) for kind, preset in PRESETS.items()}


@pytest.fixture(scope="session")
def trained(trained_by_kind: dict[str, TrainedAutoencoder]) -> TrainedAutoencoder:
    return trained_by_kind["kl"]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> ImageFiles:
    return image_files(tmp_path_factory.mktemp("files") / "images")
