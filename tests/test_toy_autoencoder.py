"""A new kind of autoencoder is a config, a network and an entry in the registry, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.registry import open_engine
from engine.verify import verify_engine
from export.exporter import export_bundle
from lddgan.checkpoint import TrainedAutoencoder, load_checkpoint
from lddgan.data.images import InMemory
from lddgan.networks.autoencoder import Autoencoder
from lddgan.networks.configs import AutoencoderConfig
from lddgan.networks.registry import AUTOENCODERS, Kind, create
from lddgan.preset import Preset, with_values
from lddgan.training.generator import train_generator
from lddgan.training.run_folder import MODEL_FILE
from lddgan.training.settings import Settings
from tests.lddgan.training.support import tiny_preset


class PixelsConfig(AutoencoderConfig):
    kind: Literal["pixels"] = "pixels"

    @property
    def factor(self) -> int:
        return 1

    @property
    def widest(self) -> int:
        return 3

    def largest_activation(self, image_size: int) -> int:
        return 3 * image_size**2


class Pixels(Autoencoder):
    """Images are their own latents."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()

    def moments(self, image: Tensor) -> Tensor:
        return image

    def decode_regularised(self, latent: Tensor) -> Tensor:
        return latent


@pytest.fixture
def preset(monkeypatch: pytest.MonkeyPatch) -> Iterator[Preset]:
    monkeypatch.setitem(AUTOENCODERS, "pixels", Kind(PixelsConfig, f"{__name__}.Pixels"))
    sizes = {"image_size": 16, "latent_size": 16, "latent_channels": 3}
    return with_values(tiny_preset(), sizes | {"autoencoder.kind": "pixels"})


def test_its_preset_is_read_from_json(preset: Preset) -> None:
    again = Preset.model_validate_json(preset.model_dump_json())
    assert again == preset and isinstance(again.autoencoder, PixelsConfig)


@pytest.mark.usefixtures("one_thread")
def test_it_trains_exports_verifies_and_samples(preset: Preset, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    images = InMemory(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
    settings = Settings(out=tmp_path, steps=1, device="cpu", log=lambda line: None)
    trained = TrainedAutoencoder(preset, create("autoencoder", preset))
    train_generator(preset, trained, images, settings)
    model = load_checkpoint(tmp_path / MODEL_FILE)
    assert isinstance(model.autoencoder, Pixels)
    export_bundle(model, tmp_path / "bundle", ("fp32",))
    engine = open_engine(tmp_path / "bundle", engine="ort", precision="fp32")
    assert verify_engine(engine, model, images=3, device="cpu").passed
    made = engine.sample(3)
    assert made.shape == (3, 16, 16, 3) and len(np.unique(made)) > 1
