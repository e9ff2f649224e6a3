"""How fast a device can be, measured, and how much work a batch is.

The ceilings are the rates of a large matrix product, of a 3x3 convolution on the model's largest
tensor and of a copy inside the device's memory, all by PyTorch: in fp16 on a GPU, in fp32 on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench.cost import Cost
from engine.registry import BASELINE, find_engine
from engine.timing import median_ms, torch_timer
from lddgan.frozen import Frozen
from lddgan.names import Device, Precision
from lddgan.preset import Preset

if TYPE_CHECKING:
    from torch import Tensor


class Sizes(NamedTuple):
    """What is timed on a device, and how often."""

    precision: Precision
    matrix: int  # rows and columns
    pixels: int  # of the convolution, over its batch
    copy_bytes: int
    warm_ups: int
    repeats: int


SIZES: Final = {  # the convolution: 8 images of 256x256, or one
    "cuda": Sizes("fp16", 8192, 1 << 19, 1 << 30, warm_ups=5, repeats=20),
    "cpu": Sizes("fp32", 2048, 1 << 16, 1 << 28, warm_ups=2, repeats=7),
}
IMAGE_WIDTH: Final = 32  # pixels, of the image that stands for a matrix
VALUE_BYTES: Final = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # of most weights and activations


class Ceilings(Frozen):
    """Median rates of a device. None, with a note, where they could not be measured."""

    precision: Precision = "fp16"  # fp16 is accumulated in fp32
    matmul_tflops: float | None = None  # of square matrices
    convolution_tflops: float | None = None  # 3x3, channels-last
    convolution: str  # its size: "8x256x256x256"
    copy_gb_per_second: float | None = None  # 10^9 bytes, read and written
    note: str | None = None


def measure_ceilings(preset: Preset, device: Device) -> Ceilings:
    """Measure the CPU or the first GPU, in seconds. CUDA is started by torch."""
    channels, size = largest(preset)
    images = max(1, SIZES[device].pixels // size**2)
    convolution = f"{images}x{channels}x{size}x{size}"
    ceilings = partial(Ceilings, precision=SIZES[device].precision, convolution=convolution)
    why_not = find_engine(BASELINE).why_not(device)
    if why_not is None:
        import torch

        if device == "cuda":
            torch.cuda.empty_cache()
        try:
            return ceilings(
                matmul_tflops=matmul_tflops(device),
                convolution_tflops=convolution_tflops(device, images, channels, size),
                copy_gb_per_second=copy_gb_per_second(device),
            )
        except RuntimeError as error:  # also of cuBLAS and cuDNN, which need memory of their own
            why_not = str(error).strip().partition("\n")[0]
    return ceilings(note=f"ceilings not measured: {why_not}")


def largest(preset: Preset) -> tuple[int, int]:
    """Channels and side of the largest tensor of generator and decoder, at latents' or images'."""
    elements, size = max(
        (preset.generator.largest_activation(preset.latent_size), preset.latent_size),
        (preset.autoencoder.largest_activation(preset.image_size), preset.image_size),
    )
    return elements // size**2, size


def matmul_tflops(device: Device) -> float:
    """Rate of a product of two square matrices.

    On a CPU as a 1x1 convolution, which oneDNN computes: torch's own product leaves AVX-512 unused
    on processors of AMD and reaches half of it.
    """
    from torch.nn.functional import conv2d

    size = SIZES[device].matrix
    if device == "cuda":
        a, b = (_random(device, size, size) for _ in range(2))
        taken = _median_seconds(device, lambda: a @ b)
    else:
        pixels = channels_last(device, 1, size, IMAGE_WIDTH, size // IMAGE_WIDTH)
        weight = channels_last(device, size, size, 1, 1)
        taken = _median_seconds(device, lambda: conv2d(pixels, weight))
    return 2 * size**3 / taken / 1e12


def convolution_tflops(device: Device, images: int, channels: int, size: int) -> float:
    """Rate of a channels-last 3x3 convolution; on a GPU with what cuDNN finds fastest."""
    import torch
    from torch.nn.functional import conv2d

    x = channels_last(device, images, channels, size, size)
    weight = channels_last(device, channels, channels, 3, 3)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        taken = _median_seconds(device, lambda: conv2d(x, weight, padding=1))
    return 2 * 9 * images * channels**2 * size**2 / taken / 1e12


def copy_gb_per_second(device: Device) -> float:
    """Bytes read and written by a copy inside the device's memory."""
    import torch

    size = SIZES[device].copy_bytes
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)  # zeros are compressed
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(device, lambda: target.copy_(source)) / 1e9


def _random(device: Device, *shape: int) -> Tensor:
    import torch

    dtype = torch.half if SIZES[device].precision == "fp16" else torch.float
    return torch.randn(*shape, device=device, dtype=dtype)


def channels_last(device: Device, *shape: int) -> Tensor:
    import torch

    return _random(device, *shape).to(memory_format=torch.channels_last)


def _median_seconds(device: Device, compute: Callable[[], Any]) -> float:
    import torch

    sizes = SIZES[device]
    with torch.inference_mode():
        return median_ms(torch_timer(device), compute, sizes.repeats, sizes.warm_ups) / 1e3


def work_of(
    cost: Cost | None, preset: Preset, precision: Precision, batch: int, chunk: int
) -> dict[str, Any]:
    """The work of a batch, as fields of a row. Returns none without a cost.

    FLOP are two for each multiply-add of the networks as published, whatever an engine saves. The
    intensity is FLOP per byte if nothing stays in a cache: every layer reads its weights once per
    call and chunk and its input once, and writes its output once; layers without weights count as
    fused. A decoder without layers has no intensity.

    The least bytes hold no activation: weights once per call and chunk; x, z, noise and x_next of
    every call; x_0 and the image.
    """
    if cost is None:
        return {}
    chunks, value, steps = -(-batch // chunk), VALUE_BYTES[precision], preset.steps
    networks = {
        "generator": (cost.generator_macs, cost.generator_parameters, cost.generator_values),
        "decoder": (cost.decoder_macs, cost.decoder_parameters, cost.decoder_values),
    }
    weights = steps * cost.generator_parameters + cost.decoder_parameters
    latent = 4 * math.prod(preset.latent_shape)
    call = 3 * latent + 4 * preset.generator.nz
    image = steps * call + latent + math.prod(preset.image_shape)
    return {
        "flop": {
            "generator": 2 * batch * steps * cost.generator_macs,
            "decoder": 2 * batch * cost.decoder_macs,
        },
        "least_bytes": chunks * weights * value + batch * image,
        "intensity": {
            name: 2 * batch * macs / (value * (chunks * weights + batch * moved))
            for name, (macs, weights, moved) in networks.items()
            if moved
        },
    }


def summary(found: Ceilings) -> str:
    """One line for people."""
    if found.note is not None:
        return found.note
    product, convolution = (
        f"{rate or 0:.0f}" if (rate or 0) >= 10 else f"{rate or 0:.2g}"
        for rate in (found.matmul_tflops, found.convolution_tflops)
    )
    return (
        f"ceilings, {found.precision}: matrix product {product} TFLOP/s, 3x3 convolution "
        f"{found.convolution} {convolution} TFLOP/s; copy {found.copy_gb_per_second:,.0f} GB/s"
    )
