"""The fp16 rehearsal: what tensor cores would compute, what is recorded, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.exporter import check_half, graph_modules
from export.fp16 import HalfRange, largest_magnitude, to_half
from export.rewrites import TAKES
from lddgan.checkpoint import Model
from lddgan.diffusion import posterior
from lddgan.errors import LddganError


def eleven_bits(seed: int, *shape: int) -> np.ndarray:
    """Multiples of 2^-10 below 2: exact in fp16, and sums of three products exact in fp32."""
    return np.random.default_rng(seed).integers(-2047, 2048, shape) / 1024


def half(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float16))


def test_products_are_accumulated_in_fp32_and_rounded_to_fp16() -> None:
    x, weight, bias = eleven_bits(0, 64, 3), eleven_bits(1, 32, 3), eleven_bits(2, 32)
    exact = x @ weight.T  # fits the 53 bits of float64 and the 24 of float32
    assert np.array_equal(exact, exact.astype(np.float32))
    assert not np.array_equal(exact, exact.astype(np.float16))
    with HalfRange() as seen:
        product = half(x) @ half(weight).T
        moved = product + half(bias)
    rounded = exact.astype(np.float16)
    assert product.dtype == moved.dtype == torch.float16
    assert np.array_equal(product.numpy(), rounded)
    expected = (rounded.astype(np.float32) + bias.astype(np.float32)).astype(np.float16)
    assert np.array_equal(moved.numpy(), expected)
    assert seen.finite
    assert seen.largest == max(np.abs(rounded).max(), np.abs(expected).max())


def test_convolution_is_rounded_once() -> None:
    x, weight = eleven_bits(3, 1, 3, 6, 5), eleven_bits(4, 4, 3, 1, 1)
    exact = np.einsum("bchw,oc->bohw", x, weight[:, :, 0, 0])
    conv = nn.Conv2d(3, 4, 1, bias=False).half()
    conv.weight.data = half(weight)
    found, largest = largest_magnitude("layer", lambda: conv(half(x)))
    assert np.array_equal(found.numpy(), exact.astype(np.float16))
    assert largest == np.abs(exact.astype(np.float16)).max()


def test_fp32_operations_are_left_alone() -> None:
    a, b = torch.tensor([1.0000001]), torch.tensor([70000.0])
    with HalfRange() as seen:
        product = a * b
    assert product.dtype == torch.float32
    assert float(product) == float(np.float32(1.0000001) * np.float32(70000))
    assert seen.largest == 0.0


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_half_of_the_range_is_allowed_and_recorded(factor: float) -> None:
    _, largest = largest_magnitude("layer", lambda: torch.tensor([256 * factor]).half() * 128)
    assert largest == 32768.0


REFUSED = {
    "product": (lambda x: x * 400, "40,000"),
    "cast": (lambda x: torch.tensor([33024.0]).half().float(), "33,024"),
    "infinite": (lambda x: x * 1000, "NaN or Inf"),
    "infinite cast": (lambda x: torch.tensor([-7e4]).half().float(), "NaN or Inf"),
    "not a number": (lambda x: (x - x) / (x - x), "NaN or Inf"),
    "inside": (lambda x: (x * 400) / 400, "40,000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_do_not_fit_fp16_are_refused_by_name(case: str) -> None:
    run, found = REFUSED[case]
    with pytest.raises(LddganError) as caught:
        largest_magnitude("decoder", lambda: run(torch.tensor([100.0]).half()))
    message = str(caught.value)
    assert message == (
        f"the decoder does not fit fp16: a tensor reaches {found}, and 32,768 is the limit; "
        "export it with --precision fp32"
    )


def test_posterior_stays_in_fp32(tiny_model: Model) -> None:
    preset = tiny_model.preset
    module = to_half(graph_modules(tiny_model, TAKES["fp16"])["generator"])
    assert {p.dtype for p in module.generator.parameters()} == {torch.float16}
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.standard_normal((2, *preset.latent_shape), np.float32))
    z = torch.from_numpy(generator.standard_normal((2, preset.generator.nz), np.float32))
    noise = torch.full_like(x, 3e5)  # no fp16 number
    t = torch.tensor([1], dtype=torch.int32)
    found, largest = largest_magnitude("generator", lambda: module(x, t, z, noise))
    x_0, _ = largest_magnitude("network", lambda: module.generator(x, t, z))
    assert found.dtype == torch.float32 and x_0.dtype == torch.float16
    assert largest < 1000
    coef1, coef2, log_var = (c.astype(np.float64)[1] for c in posterior(preset))
    expected = coef1 * x_0.double().numpy() + coef2 * x.double().numpy()
    expected += np.exp(log_var / 2) * 3e5
    assert np.abs(found.double().numpy() / expected - 1).max() < 1e-6


def test_codebook_stays_in_fp32_and_the_decoder_does_not(tiny_vq_model: Model) -> None:
    codec = to_half(graph_modules(tiny_vq_model, TAKES["fp16"])["decoder"]).autoencoder
    assert codec.quantize.codebook.dtype == codec.quantize.table.dtype == torch.float32
    assert {p.dtype for p in codec.decoder.parameters()} == {torch.float16}
    plain = to_half(graph_modules(tiny_vq_model, ())["decoder"]).autoencoder
    assert plain.quantize.embedding.weight.dtype == torch.float32
    assert plain.post_quant_conv.weight.dtype == torch.float16


@pytest.mark.parametrize("which", ["generator", "decoder"])
def test_a_model_that_overflows_is_named(tiny_model: Model, which: str) -> None:
    modules = {name: to_half(module) for name, module in graph_modules(tiny_model, ()).items()}
    conv = (
        modules["generator"].generator.all_modules[2]
        if which == "generator"
        else modules["decoder"].autoencoder.decoder.conv_in
    )
    conv.weight.data *= 2.0**15
    with pytest.raises(LddganError, match=f"the {which} does not fit fp16"):
        check_half(tiny_model, modules)
