"""Ceilings of a GPU, and the arithmetic that holds an engine against them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import roofline
from bench.cost import Cost, Traffic
from bench.roofline import (
    Achieved,
    Ceilings,
    Device,
    Roof,
    Sizes,
    StageMilliseconds,
    achieved,
    intensities,
    least_bytes,
    measure_ceilings,
    summary,
    widest,
)
from engine.gpu.driver import why_no_gpu
from engine.registry import why_no_torch_cuda
from lddgan.networks.registry import create_autoencoder
from lddgan.presets import get_preset

LSUN = get_preset("lsun")  # T = 4, latent 4x32x32, nz = 100, image 256x256
COST = Cost(
    generator_parameters=10, decoder_parameters=100, generator_macs=1_000, decoder_macs=50_000
)
KNOWN = Ceilings(
    matmul_tflops=500.0, convolution_tflops=400.0, convolution="", copy_gb_per_second=4000.0
)


def test_rates_are_work_over_time() -> None:
    times = StageMilliseconds(generator=2.0, decoder=10.0, whole=12.0)
    found = achieved(Roof(LSUN, COST, KNOWN), "fp16", 100, 32, times)
    assert found is not None
    assert found.generator_tflops == pytest.approx(2 * 100 * 4 * 1_000 / 2e-3 / 1e12)
    assert found.decoder_tflops == pytest.approx(2 * 100 * 50_000 / 10e-3 / 1e12)
    assert found.whole_tflops == pytest.approx(2 * 100 * 54_000 / 12e-3 / 1e12)
    assert found.matmul_share == pytest.approx(found.whole_tflops / 500)
    assert found.gb_per_second == pytest.approx(found.bytes / 12e-3 / 1e9)
    assert found.copy_share == pytest.approx(found.gb_per_second / 4000)


def test_bytes_are_weights_per_call_and_chunk_and_what_goes_in_and_out() -> None:
    latent, z, image = 4 * 32 * 32 * 4, 100 * 4, 256 * 256 * 3  # bytes
    weights = 4 * 10 + 100  # values of T generator calls and the decoder
    each = 4 * (latent + z + latent + latent) + latent + image
    assert least_bytes(COST, LSUN, "fp16", 1, 100) == 2 * weights + each
    assert least_bytes(COST, LSUN, "fp32", 100, 32) == 4 * 4 * weights + 100 * each


def test_intensity_is_work_over_weights_once_a_chunk_and_what_convolutions_move() -> None:
    traffic = Traffic(generator=30, decoder=300)
    generator, decoder = intensities(COST, traffic, "fp32", 100, 32)  # 4 chunks
    assert generator == pytest.approx(2 * 100 * 1_000 / (4 * (4 * 10 + 100 * 30)))
    assert decoder == pytest.approx(2 * 100 * 50_000 / (4 * (4 * 100 + 100 * 300)))
    half = intensities(COST, traffic, "fp16", 100, 32)
    assert half == pytest.approx((2 * generator, 2 * decoder))


def test_a_cpu_is_measured_in_fp32_with_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Sizes("fp32", 64, 1 << 10, 1 << 12, warm_ups=1, repeats=2)
    monkeypatch.setitem(roofline.SIZES, "cpu", small)
    found = measure_ceilings(get_preset("digits"), "cpu")
    assert (found.precision, found.convolution, found.note) == ("fp32", "1x32x32x32", None)
    assert found.matmul_tflops and found.convolution_tflops and found.copy_gb_per_second
    assert summary(found).startswith("roofline, fp32: matrix product ")


def test_without_a_cost_or_ceilings_there_is_none() -> None:
    times = StageMilliseconds(1.0, 1.0, 2.0)
    assert achieved(Roof(LSUN, None, KNOWN), "fp32", 1, 1, times) is None
    on_cpu = achieved(Roof(LSUN, COST, None), "fp32", 1, 1, times)
    assert isinstance(on_cpu, Achieved)
    assert on_cpu.matmul_share is None and on_cpu.copy_share is None


@pytest.mark.parametrize("name", ["lsun", "celeba_256", "cifar10"])
def test_the_convolution_is_the_decoders_largest(name: str) -> None:
    preset = get_preset(name)
    sizes: list[tuple[int, int, int]] = []

    def seen(module: Any, inputs: Any, output: Any) -> None:
        _, channels, height, _ = inputs[0].shape
        sizes.append((channels * height**2, channels, height))

    with torch.device("meta"):
        decoder = create_autoencoder(preset).eval()
        for module in decoder.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
                module.register_forward_hook(seen)
        with torch.no_grad():
            decoder.decode(torch.empty(1, *preset.latent_shape))
    assert max(sizes)[1:] == (widest(preset), preset.image_size)


@pytest.mark.parametrize(("device", "size"), [("cuda", 8192), ("cpu", 2048)])
def test_ceilings_count_the_work_that_they_time(
    monkeypatch: pytest.MonkeyPatch, device: Device, size: int
) -> None:
    counted: list[int] = []

    def one_millisecond(_: Device, compute: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False) as counter:
            compute()
        counted.append(counter.get_total_flops())
        return 1e-3

    monkeypatch.setattr(roofline, "_median_seconds", one_millisecond)
    monkeypatch.setattr(roofline, "_random", lambda _, *shape: torch.empty(*shape, device="meta"))
    assert roofline.matmul_tflops(device) == pytest.approx(counted[0] / 1e-3 / 1e12)
    found = roofline.convolution_tflops(device, 8, 256, 64)
    assert found == pytest.approx(counted[1] / 1e-3 / 1e12)
    assert counted[0] == 2 * size**3


def test_without_cuda_in_torch_the_ceilings_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    why_not = "torch is built without CUDA"
    monkeypatch.setattr(roofline, "why_no_library", lambda library, device: why_not)
    found = measure_ceilings(LSUN, "cuda")
    assert (found.matmul_tflops, found.convolution, found.copy_gb_per_second) == (
        None,
        "8x256x256x256",
        None,
    )
    assert summary(found) == "ceilings not measured: torch is built without CUDA"
    assert achieved(Roof(LSUN, COST, found), "fp32", 1, 1, StageMilliseconds(1, 1, 2)) is not None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "CUDA out of memory. Tried"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED\nmore"),
            "CUBLAS_STATUS_ALLOC_FAILED",
        ),
    ],
)
def test_a_full_gpu_is_a_note(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, said: str
) -> None:
    def full(_: Device) -> float:
        raise error

    monkeypatch.setattr(roofline, "why_no_library", lambda library, device: None)
    monkeypatch.setattr(roofline, "matmul_tflops", full)
    note = summary(measure_ceilings(LSUN, "cuda"))
    assert note.startswith("ceilings not measured: ") and said in note and "more" not in note


@pytest.mark.gpu
@pytest.mark.skipif(why_no_gpu() is not None, reason=str(why_no_gpu()))
@pytest.mark.skipif(why_no_torch_cuda() is not None, reason=str(why_no_torch_cuda()))
def test_this_gpus_ceilings() -> None:
    found = measure_ceilings(LSUN, "cuda")
    assert found.note is None and found.matmul_tflops and found.convolution_tflops
    assert found.copy_gb_per_second
    assert found.matmul_tflops > 1 and found.copy_gb_per_second > 10
