"""The Triton kernels against float64, under Triton's interpreter (test_kernels.py runs this).

TRITON_INTERPRET is read as Triton is imported, so these tests have a process of their own.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.backends.fused import kernels, reference
from engine.backends.fused.kernels import TRITON
from engine.backends.fused.run import FusedBackend
from engine.sampler import Sampler
from lddgan.checkpoint import Model
from lddgan.networks.quantiser import CODES_PER_SLICE
from tests.small import small_model

EPS = 1e-6
TOLERANCE = {  # of the largest value; the interpreter cuts bf16 off where a GPU rounds
    torch.float32: 2e-6,
    torch.float16: 6e-4,
    torch.bfloat16: 8e-3,
}

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


def image(*shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) + mean
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_float64(x: Tensor, groups: int, weight, bias, before, silu: bool) -> Tensor:
    value = x.double() if before is None else x.double() + before.double()[:, :, None, None]
    value = F.group_norm(value, groups, eps=EPS)
    if weight is not None:
        value = value * weight.double()[:, :, None, None] + bias.double()[:, :, None, None]
    return F.silu(value) if silu else value


def assert_close(found: Tensor, true: Tensor, tolerance: float) -> None:
    assert found.shape == true.shape
    assert float((found.double() - true.double()).abs().max() / true.abs().max()) <= tolerance


# ---- group normalisation ----


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 32, 7, 5), 8),  # less than a tile
        ((1, 24, 33, 40), 2),  # several parts, and 12 channels in a group
        ((3, 160, 9, 9), 32),  # more channels than a tile has
        ((2, 12, 1, 1), 2),
    ],
)
def test_group_norm_with_silu_and_an_affine_map(shape, groups: int, dtype: torch.dtype) -> None:
    x, channels = image(*shape, dtype=dtype), shape[1]
    weight, bias = vectors(1, channels), vectors(1, channels, seed=1)
    found = kernels.group_norm(x, groups, EPS, weight=weight, bias=bias, silu=True)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found, in_float64(x, groups, weight, bias, None, True), TOLERANCE[dtype])


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_group_norm_alone(silu: bool, shifted: bool) -> None:
    x = image(2, 20, 6, 11)
    before = vectors(1, 20) * 3 if shifted else None
    found = kernels.group_norm(x, 5, EPS, weight=None, bias=None, before=before, silu=silu)
    assert_close(found, in_float64(x, 5, None, None, before, silu), 2e-6)


def test_adaptive_styles_are_read_where_they_lie() -> None:
    """A part of the product of all styles, in fp16, and one vector of the step for all images."""
    x, styles = image(3, 16, 6, 6), vectors(3, 100).half()
    weight, bias, before = styles[:, 20:36], styles[:, 36:52], vectors(1, 100)[:, 40:56]
    found = kernels.group_norm(x, 4, EPS, weight=weight, bias=bias, before=before, silu=True)
    assert_close(found, in_float64(x, 4, weight, bias, before, True), 2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 1e-3)])
@pytest.mark.parametrize("mean", [1000.0, -3000.0])
def test_a_large_mean_costs_no_digits(dtype: torch.dtype, mean: float, tolerance: float) -> None:
    x = image(2, 32, 40, 40, dtype=dtype, mean=mean)
    found = kernels.group_norm(x, 8, EPS, weight=None, bias=None, silu=False)
    assert_close(found, in_float64(x, 8, None, None, None, False), tolerance)


def test_a_large_bias_before_costs_no_digits() -> None:
    x, before = image(1, 8, 9, 9), torch.full((1, 8), 1000.0)
    found = kernels.group_norm(x, 2, EPS, weight=None, bias=None, before=before, silu=False)
    assert_close(found, in_float64(x, 2, None, None, before, False), 1e-4)


def test_squares_beyond_fp16_are_no_harm() -> None:
    x = image(1, 8, 5, 5) * 8000  # its squares are beyond 65,504
    x = x.half().contiguous(memory_format=torch.channels_last)
    found = kernels.group_norm(x, 2, EPS, weight=None, bias=None, silu=False)
    assert_close(found, in_float64(x, 2, None, None, None, False), 6e-4)


def test_another_memory_format_is_refused() -> None:
    x = image(2, 8, 4, 4).contiguous()
    with pytest.raises(AssertionError):
        kernels.group_norm(x, 2, EPS, weight=None, bias=None, silu=False)
    with pytest.raises(AssertionError):
        kernels.add_(image(2, 8, 4, 4), x, torch.zeros(8), 1.0)


# ---- the rest between convolutions ----


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(2, 20, 5, 6), (1, 136, 12, 9)])
def test_sum_of_a_block(shape, dtype: torch.dtype) -> None:
    h, x, bias = image(*shape, dtype=dtype), image(*shape, dtype=dtype) * 2, vectors(shape[1])
    true = (h.double() + x.double() + bias.double()[:, None, None]) * 0.7
    assert kernels.add_(h, x, bias, 0.7) is h
    assert_close(h, true, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(2, 20, 5, 6), (1, 136, 4, 9), (2, 4, 1, 3)])
def test_fir_filters(shape, dtype: torch.dtype) -> None:
    x = image(*shape, dtype=dtype)
    assert_close(kernels.fir_up(x), reference.fir_up(x.double()), TOLERANCE[dtype])
    assert_close(kernels.fir_down(x, 1, 2), reference.fir_down(x.double(), 1, 2), TOLERANCE[dtype])
    if shape[2] > 1:
        found = kernels.fir_down(x, 2, 1)
        assert_close(found, reference.fir_down(x.double(), 2, 1), TOLERANCE[dtype])
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(2, 20, 6, 10), (1, 136, 4, 18), (3, 4, 2, 2), (2, 12, 70, 70)])
def test_haar_and_its_inverse(shape, dtype: torch.dtype) -> None:
    x = image(*shape, dtype=dtype)
    bands, true = kernels.haar(x), reference.haar(x.double())
    for found, band in zip(bands, true, strict=True):
        assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
        assert_close(found, band, TOLERANCE[dtype])
    back = kernels.inverse_haar(*bands)
    assert back.dtype == dtype and back.is_contiguous(memory_format=torch.channels_last)
    assert_close(back, reference.inverse_haar(*(band.double() for band in bands)), TOLERANCE[dtype])
    assert_close(back, x.double(), 2 * TOLERANCE[dtype])


# ---- the search of codes ----


@pytest.mark.parametrize("codes", [1, 5, 64, CODES_PER_SLICE + 89])
@pytest.mark.parametrize("width", [3, 4])
def test_nearest_code(codes: int, width: int) -> None:
    found = vectors(2, 67, width)
    codebook = vectors(codes, width, seed=1)
    true = torch.cdist(found.double(), codebook.double()).argmin(dim=-1)
    index = kernels.nearest_code(found, codebook)
    assert index.dtype == torch.int64
    np.testing.assert_array_equal(index, true)


def test_the_first_of_equal_codes_wins() -> None:
    codebook = vectors(200, 3)
    codebook[[70, 130, 199]] = codebook[6].clone()  # in other tiles
    codebook[[12, 13]] = codebook[11].clone()  # in the same one
    index = kernels.nearest_code(codebook[[6, 11, 13, 70, 199]][None], codebook)
    assert index.tolist() == [[6, 11, 11, 6, 6]]


def test_codes_stay_in_the_codebook_for_nan() -> None:
    index = kernels.nearest_code(torch.full((1, 3, 3), float("nan")), vectors(5, 3))
    assert index.tolist() == [[0, 0, 0]]


# ---- all of it ----


@pytest.mark.full
@pytest.mark.parametrize("name", ["tiny_vq", "small-wavelet"])
def test_the_sampler_with_the_kernels(name: str, tiny_vq_model: Model) -> None:
    """Every tensor that a kernel is given is channels-last, and the images are the same."""
    model = tiny_vq_model if name == "tiny_vq" else small_model(name)
    made = [
        Sampler(backend, model.preset, random_weights=True, chunk=1).sample(1, seed=2)
        for backend in (FusedBackend(model, "fp16", TRITON), FusedBackend(model, "fp16"))
    ]
    off = np.abs(made[0].astype(int) - made[1].astype(int))
    assert made[0].std() > 10 and off.max() <= 2 and off.mean() < 0.2
