"""Small models of the predecessors and of the U-ViT, with every kind of layer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lddgan.preset import Preset, with_values
from lddgan.presets import get_preset
from tests.bundles import exported

if TYPE_CHECKING:
    from lddgan.checkpoint import Model

NARROW: dict[str, Any] = {
    "steps": 2,
    "generator.nz": 10,
    "generator.mapping_layers": 1,
    "generator.z_emb_dim": 16,
    "discriminator.layers": 2,
}
NCSNPP = {"generator.nf": 16, "generator.ch_mult": (1, 2), "generator.blocks": 1}


def small(name: str, like: str, **values: Any) -> Preset:
    return with_values(get_preset(like), NARROW | values).model_copy(update={"name": name})


PRESETS = {
    preset.name: preset
    for preset in (
        small(  # an image is no multiple of 256 bytes
            "small-pixels",
            "ddgan-cifar10",
            image_size=24,
            latent_size=24,
            **NCSNPP | {"generator.attention": (12,)},
        ),
        small(
            "small-wavelet",
            "wddgan-lsun",
            image_size=32,
            latent_size=16,
            **NCSNPP | {"generator.attention": (8,)},
        ),
        small(
            "small-vit",
            "vit-tiny",
            image_size=16,
            latent_size=8,
            **{
                "generator.width": 32,
                "generator.depth": 3,
                "generator.heads": 2,
                "autoencoder.ch": 32,
                "autoencoder.blocks": 1,
                "autoencoder.attention": (8,),
            },
        ),
    )
}


@cache
def small_model(name: str) -> Model:
    """A model of random weights."""
    from lddgan.checkpoint import random_model

    return random_model(PRESETS[name])


def small_bundle(name: str, precision: str = "fp32") -> Path:
    """The model, exported."""
    pytest.importorskip("onnxscript")
    return exported(small_model(name), (precision,))
