"""DDGAN and WDDGAN: published names and shapes, recorded cases (FAMILIES.md), gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lddgan.networks.haar import Haar, InverseHaar
from lddgan.networks.layers import GroupNorm
from lddgan.networks.registry import create
from lddgan.networks.wavelet import HaarDown, HaarUp
from lddgan.presets import get_preset
from tests.published_files import (
    deviation,
    official_keys,
    recorded,
    small_wavelet,
)

DATA = ("cifar10", "celeba_256", "lsun")
NAMES = [f"{family}-{data}" for family in ("ddgan", "wddgan") for data in DATA]
PRESETS = {name: get_preset(name) for name in NAMES} | {"wddgan-small": small_wavelet()}


@pytest.mark.parametrize("name", PRESETS)
def test_names_shapes_and_order_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network = create("generator", PRESETS[name])
    expected = [(k, tuple(shape)) for k, shape in official_keys()[f"{name}/generator"].items()]
    assert [(k, tuple(v.shape)) for k, v in network.state_dict().items()] == expected
    assert [(k, tuple(v.shape)) for k, v in network.named_parameters()] == expected


@pytest.mark.parametrize(("name", "case"), [("wddgan-celeba_256", "a"), ("wddgan-lsun", "b")])
def test_recorded_haar_transform(name: str, case: str) -> None:
    arrays = recorded("haar")
    codec = create("autoencoder", get_preset(name))
    assert deviation(codec.encode(arrays["x"]), arrays[f"bands_{case}"]) <= 1e-6
    assert deviation(codec.decode(arrays["y"]), arrays[f"image_{case}"]) <= 1e-6


# ---- gradients, against finite differences in float64 ----


def in_float64(network: nn.Module) -> nn.Module:
    """The network in float64 throughout, with random weights; ours normalises in float32."""
    for layer in network.modules():
        if isinstance(layer, GroupNorm):
            layer.__class__ = nn.GroupNorm
    for weight in network.double().parameters():
        nn.init.normal_(weight, std=0.3)
    return network


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_gradients_of_the_haar_transform() -> None:
    assert torch.autograd.gradcheck(Haar(), random(2, 3, 4, 6))
    assert torch.autograd.gradcheck(InverseHaar(), (random(2, 3, 2, 3), random(2, 9, 2, 3)))


def test_gradients_of_the_wavelet_blocks() -> None:
    torch.manual_seed(0)
    temb, zemb = random(2, 6), random(2, 5)
    down, up = in_float64(HaarDown(8, 6, 5)), in_float64(HaarUp(8, 4, 6, 5))
    assert torch.autograd.gradcheck(down, (random(2, 8, 4, 4), temb, zemb))
    assert torch.autograd.gradcheck(up, (random(2, 8, 2, 2), random(2, 12, 2, 2), temb, zemb))
