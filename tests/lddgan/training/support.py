"""What the tests of the training share."""

from pathlib import Path

import torch

from lddgan.checkpoint import TrainedAutoencoder, random_model
from lddgan.preset import Preset
from lddgan.presets import get_preset
from lddgan.training.ranks import Ranks
from lddgan.training.settings import Settings

ALONE = Ranks(0, 1, torch.device("cpu"))


def tiny_preset() -> Preset:
    """The digits preset with small networks, batch 8 and two epochs: six steps on 24 images."""
    preset = get_preset("digits")
    changed = {
        "generator": {"nf": 8, "nz": 6, "z_emb_dim": 8, "mapping_layers": 1},
        "discriminator": {"ngf": 4, "t_emb_dim": 8, "layers": 2},
        "training": {"batch": 8, "epochs": 2, "r1_every": 2},
        "autoencoder_training": {"batch": 8, "epochs": 2},
    }
    return preset.model_copy(
        update={name: getattr(preset, name).model_copy(update=u) for name, u in changed.items()}
    )


def random_autoencoder(preset: Preset) -> TrainedAutoencoder:
    """A random autoencoder."""
    return TrainedAutoencoder(preset, random_model(preset).autoencoder)


def settings(out: str | Path, **changes: object) -> Settings:
    """A quiet run on the CPU."""
    given = {"out": Path(out), "device": "cpu", "log": lambda line: None} | changes
    return Settings(**given)  # type: ignore[arg-type]
