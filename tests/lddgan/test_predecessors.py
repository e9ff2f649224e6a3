"""The same NCSN++ with the predecessors' sizes gives their recorded outputs (FAMILIES.md)."""

from __future__ import annotations

import pytest
import torch

from lddgan.networks.generator import Generator
from lddgan.preset import Preset
from lddgan.presets import get_preset
from tests.published_files import TOLERANCE, deviation, official_state, recorded


def predecessor(channels: int, size: int, **generator: object) -> Preset:
    """The cifar10 preset with another input and network; its codec plays no part here."""
    preset = get_preset("cifar10")
    network = preset.generator.model_copy(update={"nz": 100, **generator})
    changes = {"latent_channels": channels, "latent_size": size, "generator": network}
    return preset.model_copy(update=changes)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("ddgan-cifar10", predecessor(3, 32, ch_mult=(1, 2, 2, 2), attention=(16,))),
        ("wddgan-cifar10", predecessor(12, 16)),
    ],
)
def test_recorded_generator(name: str, preset: Preset) -> None:
    case = recorded(f"{name}_generator")
    generator = Generator(preset).eval()
    generator.load_state_dict(official_state(f"{name}/generator"))
    with torch.no_grad():
        x_0 = generator(case["x_t"], case["t"], case["z"])
    assert deviation(x_0, case["x0"]) <= TOLERANCE
