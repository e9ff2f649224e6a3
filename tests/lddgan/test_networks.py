"""The networks: published names and shapes, recorded cases, each layer by its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from lddgan import diffusion
from lddgan.checkpoint import materialise
from lddgan.networks.autoencoder import KlAutoencoder
from lddgan.networks.discriminator import minibatch_deviation
from lddgan.networks.layers import FirDown, FirUp, GroupNorm, attention, sinusoid
from lddgan.networks.ncsnpp import Ncsnpp
from lddgan.networks.quantiser import nearest_code
from lddgan.networks.registry import PARTS, create
from lddgan.preset import Preset
from lddgan.presets import get_preset
from tests.published_files import (
    TOLERANCE,
    deviation,
    official_keys,
    official_state,
    recorded,
    tiny_preset,
)

exactly = settings(deadline=None, derandomize=True, database=None, max_examples=40)


def on_meta(part: str, preset: Preset) -> nn.Module:
    with torch.device("meta"):
        return create(part, preset)


# ---- names and shapes ----


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["cifar10", "celeba_256", "lsun"])
def test_names_shapes_and_order_are_the_published_ones(name: str, part: str) -> None:
    network = on_meta(part, get_preset(name))
    expected = [(key, tuple(shape)) for key, shape in official_keys()[f"{name}/{part}"].items()]
    assert [(k, tuple(v.shape)) for k, v in network.state_dict().items()] == expected
    # The published EMA numbers the parameters: they are the state dict, in the same order.
    assert [(k, tuple(v.shape)) for k, v in network.named_parameters()] == expected


# ---- recorded cases ----


@torch.no_grad()
def test_cifar10_discriminator_is_the_recorded_one() -> None:
    case = recorded("cifar10_discriminator")
    network = on_meta("discriminator", get_preset("cifar10"))
    materialise(network, official_state("cifar10/discriminator"))
    logit = network(case["x_t"], case["t"], case["x_tp1"])
    assert deviation(logit, case["logit"]) < TOLERANCE


def test_schedule_is_the_recorded_one() -> None:
    case = recorded("cifar10_sampler")
    preset = get_preset("cifar10")
    coefficients = diffusion.posterior(preset)
    for found, name in (
        (diffusion.schedule(preset), "betas"),
        (coefficients.coef1, "coef1"),
        (coefficients.coef2, "coef2"),
        (coefficients.log_var, "log_var"),
    ):
        np.testing.assert_allclose(found, case[name].numpy(), rtol=2e-6, atol=1e-7, err_msg=name)


def test_posterior_at_two_steps_by_hand() -> None:
    """T = 2: the last step returns x_0; the first mixes by Bayes' rule."""
    preset = tiny_preset(steps=2)
    beta = diffusion.schedule(preset)[1:].astype(float)
    coefficients = diffusion.posterior(preset)
    assert coefficients.coef1[0] == pytest.approx(1)
    assert coefficients.coef2[0] == 0
    assert coefficients.sigma[0] == 0
    precision = 1 / beta[0] + (1 - beta[1]) / beta[1]  # of x_1 given x_0 and x_2
    assert coefficients.coef1[1] == pytest.approx(np.sqrt(1 - beta[0]) / beta[0] / precision)
    assert coefficients.coef2[1] == pytest.approx(np.sqrt(1 - beta[1]) / beta[1] / precision)
    assert coefficients.sigma[1] ** 2 == pytest.approx(1 / precision, rel=1e-5)


# ---- FIR resampling, against NETWORKS.md in numpy ----

TAPS = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Valid correlation of one channel, by its definition."""
    height, width = (size - 3 for size in image.shape)
    return np.array(
        [
            [(image[y : y + 4, x : x + 4] * kernel).sum() for x in range(width)]
            for y in range(height)
        ]
    )


def fir_down(image: np.ndarray) -> np.ndarray:
    """Pad 1 each side, correlate, keep every second sample."""
    return correlate(np.pad(image, 1), TAPS)[::2, ::2]


def fir_up(image: np.ndarray) -> np.ndarray:
    """Insert zeros (sample first), pad (2, 1), correlate with 4 x the kernel."""
    spread = np.zeros((2 * image.shape[0], 2 * image.shape[1]))
    spread[::2, ::2] = image
    return correlate(np.pad(spread, (2, 1)), 4 * TAPS)


def per_channel(function, images: np.ndarray) -> np.ndarray:
    return np.array([[function(channel) for channel in image] for image in images])


even = st.integers(1, 4).map(lambda half: 2 * half)
images = st.tuples(st.integers(1, 2), st.integers(1, 3), even, even).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-8, 8, width=16))
)


@exactly
@given(x=images)
def test_fir_down(x: np.ndarray) -> None:
    found = FirDown(x.shape[1])(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, per_channel(fir_down, x), atol=1e-5)


@exactly
@given(x=images)
def test_fir_up(x: np.ndarray) -> None:
    found = FirUp(x.shape[1])(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, per_channel(fir_up, x), atol=1e-5)


@exactly
@given(x=images)
def test_pyramid_filter_pads_two_and_keeps_all(x: np.ndarray) -> None:
    found = FirDown(x.shape[1], padding=2, stride=1)(torch.from_numpy(x)).numpy()
    expected = per_channel(lambda channel: correlate(np.pad(channel, 2), TAPS), x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape[2:] == (x.shape[2] + 1, x.shape[3] + 1)


def test_constants_survive_resampling_away_from_the_border() -> None:
    ones = torch.ones(1, 1, 8, 8)
    assert torch.allclose(FirDown(1)(ones)[..., 1:-1, 1:-1], torch.ones(1))
    assert torch.allclose(FirUp(1)(ones)[..., 2:-2, 2:-2], torch.ones(1))


# ---- other layers ----


@pytest.mark.parametrize("width", [4, 16, 128, 256])
def test_sinusoid(width: int) -> None:
    t = np.arange(8)
    half = width // 2
    frequencies = np.exp(-np.arange(half) * np.log(10000) / (half - 1))
    angles = t[:, None] * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(sinusoid(torch.from_numpy(t), width).numpy(), expected, atol=2e-6)


def test_attention_by_its_definition() -> None:
    draw = np.random.default_rng(0)
    q, k, v = draw.standard_normal((3, 2, 5, 4)).astype(np.float32)
    scores = np.exp(q @ k.transpose(0, 2, 1) / 2)  # sqrt(4) = 2
    expected = scores / scores.sum(axis=-1, keepdims=True) @ v
    found = attention(*(torch.from_numpy(x) for x in (q, k, v)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_group_norm_by_its_definition() -> None:
    x = np.random.default_rng(0).standard_normal((2, 6, 3, 3)).astype(np.float32) * 50 + 100
    grouped = x.reshape(2, 3, -1).astype(np.float64)
    mean, variance = grouped.mean(axis=-1, keepdims=True), grouped.var(axis=-1, keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    found = GroupNorm(3, 6, eps=1e-6)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


small_integers = st.integers(-3, 3).map(float)


@exactly
@given(
    vectors=arrays(np.float32, (2, 7, 3), elements=small_integers),
    codes=st.integers(1, 40).flatmap(lambda n: arrays(np.float32, (n, 3), elements=small_integers)),
    per_slice=st.integers(1, 41),
)
def test_nearest_code_is_the_lowest_of_the_nearest(
    vectors: np.ndarray, codes: np.ndarray, per_slice: int
) -> None:
    """Small integers make every distance exact, so that there are many ties."""
    distance = ((vectors[:, :, None] - codes) ** 2).sum(axis=-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lddgan.networks.quantiser.CODES_PER_SLICE", per_slice)
        found = nearest_code(torch.from_numpy(vectors), torch.from_numpy(codes))
    np.testing.assert_array_equal(found.numpy(), distance.argmin(axis=-1))


def test_nearest_code_in_the_celeba_codebook() -> None:
    draw = np.random.default_rng(0)
    codes = draw.standard_normal((8192, 3)).astype(np.float32)
    codes[5000] = codes[700]  # a tie across slices
    vectors = draw.standard_normal((1, 300, 3)).astype(np.float32)
    vectors[0, 0] = codes[700]
    distance = ((vectors[0, :, None].astype(np.float64) - codes) ** 2).sum(axis=-1)
    found = nearest_code(torch.from_numpy(vectors), torch.from_numpy(codes))[0].numpy()
    assert found[0] == 700
    chosen = np.take_along_axis(distance, found[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(chosen, distance.min(axis=1), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8, 12])
def test_minibatch_deviation_groups(batch: int) -> None:
    """Image i shares its group with i + B/4, i + B/2, ...: the first axis of view(group, -1)."""
    x = np.random.default_rng(batch).standard_normal((batch, 3, 2, 2)).astype(np.float32)
    found = minibatch_deviation(torch.from_numpy(x)).numpy()
    assert found.shape == (batch, 4, 2, 2)
    np.testing.assert_array_equal(found[:, :3], x)
    stride = batch // min(batch, 4)
    for i in range(batch):
        group = x[i % stride :: stride]
        assert len(group) == min(batch, 4)
        expected = np.sqrt(group.var(axis=0) + 1e-8).mean()
        np.testing.assert_allclose(found[i, 3], expected, rtol=1e-5)


def test_minibatch_deviation_of_a_batch_that_does_not_divide() -> None:
    with pytest.raises(RuntimeError):
        minibatch_deviation(torch.zeros(6, 3, 2, 2))


# ---- the networks as a whole ----


@torch.no_grad()
def test_generator_depends_on_all_inputs_but_the_length_of_z() -> None:
    preset = tiny_preset()
    torch.manual_seed(0)
    network = Ncsnpp(preset)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    x, z = torch.randn(2, *preset.latent_shape), torch.randn(2, preset.generator.nz)
    t = torch.tensor([0, 3])
    x_0 = network(x, t, z)
    assert x_0.shape == x.shape
    assert float(x_0.abs().max()) <= 1
    assert torch.allclose(network(x, t, 7 * z), x_0, atol=1e-5)
    for other in (network(-x, t, z), network(x, 1 + t, z), network(x, t, z.flip(1))):
        assert not torch.allclose(other, x_0, atol=1e-4)
    assert torch.allclose(network(x[1:], t[1:], z[1:]), x_0[1:], atol=1e-5)


@torch.no_grad()
def test_log_variance_is_clamped() -> None:
    preset = tiny_preset()
    network = KlAutoencoder(preset)
    network.quant_conv.weight.zero_()
    network.quant_conv.bias.copy_(torch.tensor([-99.0, -99, 99, 99, -99, -99, 99, 99]))
    mean, logvar = network.moments(torch.zeros(1, *preset.image_shape)).chunk(2, dim=1)
    assert mean.amin() == -99
    assert (logvar.amin(), logvar.amax()) == (-30, 20)
