"""Ceilings of a GPU, and the arithmetic that holds an engine against them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import roofline
from bench.cost import Cost
from bench.roofline import Sizes, largest, measure_ceilings, summary, work_of
from engine.gpu.driver import why_no_gpu
from engine.registry import find_engine
from engine.requirements import why_no_torch_cuda
from lddgan.names import Device
from lddgan.networks.registry import create
from lddgan.presets import get_preset

LSUN = get_preset("lsun")  # T = 4, latent 4x32x32, nz = 100, image 256x256
COST = Cost(
    generator_parameters=10,
    decoder_parameters=100,
    generator_macs=1_000,
    decoder_macs=50_000,
    generator_values=30,
    decoder_values=300,
)


def test_least_bytes_are_weights_inputs_and_outputs() -> None:
    latent, z, image = 4 * 32 * 32 * 4, 100 * 4, 256 * 256 * 3  # bytes
    weights = 4 * 10 + 100  # values of T generator calls and the decoder
    each = 4 * (latent + z + latent + latent) + latent + image
    assert work_of(COST, LSUN, "fp16", 1, 100)["least_bytes"] == 2 * weights + each
    chunked = work_of(COST, LSUN, "fp32", 100, 32)  # 4 chunks
    assert chunked["least_bytes"] == 4 * 4 * weights + 100 * each


def test_work_is_counted_in_the_networks_as_published() -> None:
    work = work_of(COST, LSUN, "fp32", 100, 32)  # 4 chunks
    assert work["flop"] == {"generator": 2 * 100 * 4 * 1_000, "decoder": 2 * 100 * 50_000}
    generator, decoder = work["intensity"]["generator"], work["intensity"]["decoder"]
    assert generator == pytest.approx(2 * 100 * 1_000 / (4 * (4 * 10 + 100 * 30)))
    assert decoder == pytest.approx(2 * 100 * 50_000 / (4 * (4 * 100 + 100 * 300)))
    half = work_of(COST, LSUN, "fp16", 100, 32)["intensity"]
    assert half == pytest.approx({"generator": 2 * generator, "decoder": 2 * decoder})
    assert work_of(None, LSUN, "fp32", 100, 32) == {}


def test_a_cpu_is_measured_in_fp32_with_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Sizes("fp32", 64, 1 << 10, 1 << 12, warm_ups=1, repeats=2)
    monkeypatch.setitem(roofline.SIZES, "cpu", small)
    found = measure_ceilings(get_preset("digits"), "cpu")
    assert (found.precision, found.convolution, found.note) == ("fp32", "1x32x32x32", None)
    assert found.matmul_tflops and found.convolution_tflops and found.copy_gb_per_second
    assert summary(found).startswith("ceilings, fp32: matrix product ")


@pytest.mark.parametrize("name", ["lsun", "celeba_256", "cifar10"])
def test_the_convolution_is_the_decoders_largest(name: str) -> None:
    preset = get_preset(name)
    sizes: list[tuple[int, int, int]] = []

    def seen(module: Any, inputs: Any, output: Any) -> None:
        _, channels, height, _ = inputs[0].shape
        sizes.append((channels * height**2, channels, height))

    with torch.device("meta"):
        decoder = create("autoencoder", preset).eval()
        for module in decoder.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
                module.register_forward_hook(seen)
        with torch.no_grad():
            decoder.decode(torch.empty(1, *preset.latent_shape))
    assert max(sizes)[1:] == largest(preset)


@pytest.mark.parametrize(
    ("name", "channels", "side"), [("ddgan-lsun", 128, 256), ("wddgan-lsun", 192, 128)]
)
def test_a_codec_without_layers_leaves_the_generators_convolution(
    name: str, channels: int, side: int
) -> None:
    assert largest(get_preset(name)) == (channels, side)
    work = work_of(replace_decoder(COST), get_preset(name), "fp32", 100, 32)
    assert work["flop"]["decoder"] == 0 and work["intensity"].keys() == {"generator"}


def replace_decoder(cost: Cost) -> Cost:
    nothing = {"decoder_parameters": 0, "decoder_macs": 0, "decoder_values": 0}
    return cost.model_copy(update=nothing)


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


def without_cuda(monkeypatch: pytest.MonkeyPatch, why_not: str | None) -> None:
    """Let PyTorch say that it cannot use a GPU, or that it can."""
    torch_engine = replace(find_engine("torch"), why_not=lambda device: why_not)
    monkeypatch.setattr(roofline, "find_engine", lambda name: torch_engine)


def test_without_cuda_in_torch_the_ceilings_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    why_not = "torch is built without CUDA"
    without_cuda(monkeypatch, why_not)
    found = measure_ceilings(LSUN, "cuda")
    assert (found.matmul_tflops, found.convolution, found.copy_gb_per_second) == (
        None,
        "8x256x256x256",
        None,
    )
    assert summary(found) == "ceilings not measured: torch is built without CUDA"


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

    without_cuda(monkeypatch, None)
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
