"""What a device can do, measured, and what an engine reaches of it: python -m bench.roofline

The ceilings are a large matrix product, the decoder's widest 3x3 convolution and a copy inside the
device's memory, all by PyTorch: in fp16 on a GPU, in fp32 on a CPU.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from bench.cost import Cost, Traffic
from engine.gpu.driver import why_no_gpu
from engine.registry import why_no_library
from engine.timing import Timer, torch_timer
from lddgan.frozen import Frozen
from lddgan.names import Precision
from lddgan.preset import Preset
from lddgan.presets import get_preset

if TYPE_CHECKING:
    from torch import Tensor

Device = Literal["cpu", "cuda"]


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
WIDTH: Final = 32  # of the image that stands for a matrix
VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # of most weights and activations


class Ceilings(Frozen):
    """Rates of one device, medians; None with a note where they could not be measured."""

    precision: Precision = "fp16"  # fp16 is accumulated in fp32
    matmul_tflops: float | None  # of square matrices
    convolution_tflops: float | None  # 3x3, channels-last
    convolution: str  # its size: "8x256x256x256"
    copy_gb_per_second: float | None  # 10^9 bytes, read and written
    note: str | None = None


class Achieved(Frozen):
    """Rates of one side at its median times: 2 FLOP for each multiply-add of the networks.

    The networks are counted as published: what an engine saves by rewriting them counts for it.
    """

    generator_tflops: float
    decoder_tflops: float
    whole_tflops: float
    matmul_share: float | None  # whole / ceiling of the matrix product, if `comparable`
    # A lower bound: weights once per call, inputs and outputs of the graphs; no activation.
    bytes: int
    gb_per_second: float  # bytes / the whole's time
    copy_share: float | None  # of the copy rate


class Roof(NamedTuple):
    """What a time is held against."""

    preset: Preset
    cost: Cost | None  # None without torch, which counts it
    ceilings: Ceilings | None  # None where they were not asked for


class StageMilliseconds(NamedTuple):
    """Median times of one batch."""

    generator: float
    decoder: float
    whole: float


def measure_ceilings(preset: Preset, device: Device) -> Ceilings:
    """Measure the CPU or the first GPU; takes seconds. Starts CUDA through torch for a GPU."""
    size, channels = preset.image_size, widest(preset)
    images = max(1, SIZES[device].pixels // size**2)
    shape = f"{images}x{channels}x{size}x{size}"
    why_not = why_no_library("torch", device)
    if why_not is not None:
        return _unknown(device, shape, why_not)
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()
    try:
        return Ceilings(
            precision=SIZES[device].precision,
            matmul_tflops=matmul_tflops(device),
            convolution_tflops=convolution_tflops(device, images, channels, size),
            convolution=shape,
            copy_gb_per_second=copy_gb_per_second(device),
        )
    except RuntimeError as error:  # also of cuBLAS and cuDNN, which need memory of their own
        return _unknown(device, shape, str(error).strip().partition("\n")[0])


def widest(preset: Preset) -> int:
    """Channels of a convolution at the image's size whose tensor is the decoder's largest."""
    return preset.autoencoder.largest_activation(preset.image_size) // preset.image_size**2


def _unknown(device: Device, shape: str, why_not: str) -> Ceilings:
    return Ceilings(
        precision=SIZES[device].precision,
        matmul_tflops=None,
        convolution_tflops=None,
        convolution=shape,
        copy_gb_per_second=None,
        note=f"ceilings not measured: {why_not}",
    )


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
        pixels = _channels_last(device, 1, size, WIDTH, size // WIDTH)
        weight = _channels_last(device, size, size, 1, 1)
        taken = _median_seconds(device, lambda: conv2d(pixels, weight))
    return 2 * size**3 / taken / 1e12


def convolution_tflops(device: Device, images: int, channels: int, size: int) -> float:
    """Rate of a channels-last 3x3 convolution; on a GPU with what cuDNN finds fastest."""
    import torch
    from torch.nn.functional import conv2d

    x = _channels_last(device, images, channels, size, size)
    weight = _channels_last(device, channels, channels, 3, 3)
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


def _channels_last(device: Device, *shape: int) -> Tensor:
    import torch

    return _random(device, *shape).to(memory_format=torch.channels_last)


def _median_seconds(device: Device, compute: Callable[[], Any]) -> float:
    """By the device's clock, after a warm-up."""
    import torch

    timer: Timer = torch_timer(device)
    with torch.inference_mode():
        for _ in range(SIZES[device].warm_ups):
            compute()
        marks = [timer.mark()]
        for _ in range(SIZES[device].repeats):
            compute()
            marks.append(timer.mark())
    return median(timer.milliseconds(*span) for span in itertools.pairwise(marks)) / 1e3


def achieved(
    roof: Roof, precision: Precision, batch: int, chunk: int, times: StageMilliseconds
) -> Achieved | None:
    """Rates of one side at the times of a batch; None where the cost is not known."""
    preset, cost, ceilings = roof
    if cost is None:
        return None
    generator = 2 * batch * preset.steps * cost.generator_macs
    decoder = 2 * batch * cost.decoder_macs
    moved = least_bytes(cost, preset, precision, batch, chunk)
    whole, rate = (generator + decoder) / times.whole / 1e9, moved / times.whole / 1e6
    products = ceilings.matmul_tflops if ceilings and comparable(ceilings, precision) else None
    return Achieved(
        generator_tflops=generator / times.generator / 1e9,
        decoder_tflops=decoder / times.decoder / 1e9,
        whole_tflops=whole,
        matmul_share=_share(whole, products),
        bytes=moved,
        gb_per_second=rate,
        copy_share=_share(rate, ceilings.copy_gb_per_second if ceilings else None),
    )


def comparable(ceilings: Ceilings, precision: Precision) -> bool:
    """Whether rates of a precision can be held against ceilings: bf16 runs at the rate of fp16."""
    return ceilings.precision == ("fp16" if precision == "bf16" else precision)


def _share(rate: float, ceiling: float | None) -> float | None:
    return None if ceiling is None else rate / ceiling


def intensities(
    cost: Cost, traffic: Traffic, precision: Precision, batch: int, chunk: int
) -> tuple[float, float]:
    """FLOP per byte of generator and decoder: what convolutions must move if nothing stays cached.

    Every convolution of the published network reads its weights once per call and chunk, and reads
    its input and writes its output once; what lies between convolutions is taken as fused.
    """
    chunks = -(-batch // chunk)
    of_networks = (
        (cost.generator_macs, cost.generator_parameters, traffic.generator),
        (cost.decoder_macs, cost.decoder_parameters, traffic.decoder),
    )
    generator, decoder = (
        2 * batch * macs / (VALUE_BYTES[precision] * (chunks * weights + batch * moved))
        for macs, weights, moved in of_networks
    )
    return generator, decoder


def least_bytes(cost: Cost, preset: Preset, precision: Precision, batch: int, chunk: int) -> int:
    """Bytes that a batch must move at the least.

    The weights once per call and chunk; x, z, noise and x_next of every call, x_0 and the image.
    """
    chunks = -(-batch // chunk)
    weights = preset.steps * cost.generator_parameters + cost.decoder_parameters
    channels, height, width = preset.latent_shape
    latent = 4 * channels * height * width
    call = 3 * latent + 4 * preset.generator.nz
    image = 3 * preset.image_size**2
    per_image = preset.steps * call + latent + image
    return chunks * weights * VALUE_BYTES[precision] + batch * per_image


def summary(found: Ceilings) -> str:
    """One line for people."""
    if found.note is not None:
        return found.note
    return (
        f"ceilings, {found.precision}: matrix product {_rate(found.matmul_tflops)} TFLOP/s, 3x3 "
        f"convolution {found.convolution} {_rate(found.convolution_tflops)} TFLOP/s; copy "
        f"{found.copy_gb_per_second:,.0f} GB/s"
    )


def _rate(tflops: float | None) -> str:
    if tflops is None:
        return "unknown"
    return f"{tflops:.0f}" if tflops >= 10 else f"{tflops:.2g}"


def main() -> int:
    """Print the ceilings of this machine's GPU; returns the exit code."""
    why_not = why_no_gpu()
    if why_not is not None:
        print(why_not, file=sys.stderr)
        return 1
    print(summary(measure_ceilings(get_preset("lsun"), "cuda")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
