"""Folding "nearest x2, 3x3 convolution" into one transposed convolution changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from export import rewrites
from export.pipeline import graph_modules
from export.rewrites import fold_nearest_upsampling, fold_upsampling, transposed
from lddgan.checkpoint import Model
from lddgan.networks.autoencoder import Upsample


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def as_published(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, padding=1)


def folded(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv_transpose2d(x, fold_nearest_upsampling(weight), stride=2, padding=1)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 7)] * 4), batch=st.integers(1, 3), seed=st.integers(0, 2**31)
)
def test_folding_is_exact_everywhere(
    sizes: tuple[int, int, int, int], batch: int, seed: int
) -> None:
    inputs, outputs, height, width = sizes
    x = draw(seed, batch, inputs, height, width)
    weight = draw(seed + 1, outputs, inputs, 3, 3)
    ours, published = folded(x, weight), as_published(x, weight)
    assert ours.shape == published.shape == (batch, outputs, 2 * height, 2 * width)
    assert (ours - published).abs().max() < 1e-12 * inputs * 9


def test_folding_in_float32_is_within_rounding() -> None:
    x = draw(0, 2, 16, 9, 5, dtype=torch.float32)
    weight = draw(1, 8, 16, 3, 3, dtype=torch.float32) / 12  # 1/sqrt(fan in)
    assert (folded(x, weight) - as_published(x, weight)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "taps",
    [((0,), (0, 1), (1, 2), (2,)), ((2,), (0, 1), (1, 2), (0,)), ((1,), (1, 2), (0, 1), (0,))],
    ids=["mirrored", "inner taps swapped", "one tap off"],
)
def test_comparison_notices_a_wrong_tap_map(
    monkeypatch: pytest.MonkeyPatch, taps: tuple[tuple[int, ...], ...]
) -> None:
    x, weight = draw(0, 1, 3, 5, 4), draw(1, 2, 3, 3, 3)
    monkeypatch.setattr(rewrites, "TAPS", taps)
    assert (folded(x, weight) - as_published(x, weight)).abs().max() > 0.1


def test_transposed_module_keeps_the_bias() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    x = draw(2, 2, 3, 4, 6)
    expected = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert (transposed(conv)(x) - expected).abs().max() < 1e-13


def test_decoder_without_upsamplings_decodes_the_same(tiny_model: Model) -> None:
    autoencoder = copy.deepcopy(tiny_model.autoencoder).double()
    latent = draw(3, 2, *tiny_model.preset.latent_shape)
    expected = autoencoder.decode(latent)
    fold_upsampling(autoencoder)
    assert not any(isinstance(module, Upsample) for module in autoencoder.modules())
    assert sum(isinstance(module, nn.ConvTranspose2d) for module in autoencoder.modules()) == 2
    assert (autoencoder.decode(latent) - expected).abs().max() < 1e-12


def test_exported_modules_are_copies(tiny_model: Model) -> None:
    before = sum(isinstance(module, Upsample) for module in tiny_model.autoencoder.modules())
    weights = {name: tensor.clone() for name, tensor in tiny_model.generator.state_dict().items()}
    modules = graph_modules(tiny_model)
    modules["generator"].half()
    assert sum(isinstance(m, Upsample) for m in tiny_model.autoencoder.modules()) == before == 2
    after = tiny_model.generator.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
