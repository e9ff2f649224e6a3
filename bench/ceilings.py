"""What the GPU can do, measured, and what an engine reaches of it: python -m bench.ceilings

The ceilings are a large fp16 matrix product, the decoder's widest 3x3 convolution and a copy inside
the GPU's memory, all by PyTorch.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.cost import Cost
from bench.timing import TorchEvents
from engine.driver import why_no_gpu
from engine.select import why_no_torch_cuda
from export.graphs import Precision
from lddgan.presets import Frozen, Preset, get_preset

if TYPE_CHECKING:
    from torch import Tensor

MATRIX = 8192  # rows and columns
PIXELS = 1 << 19  # of the convolution, over its batch: 8 images of 256x256
COPY_BYTES = 1 << 30
WARM_UPS, REPEATS = 5, 20
VALUE_BYTES = {"fp32": 4, "fp16": 2}


class Ceilings(Frozen):
    """Rates of one GPU, medians; None with a note where they could not be measured."""

    matmul_tflops: float | None  # fp16 8192x8192 by 8192x8192, accumulated in fp32
    convolution_tflops: float | None  # fp16 3x3, channels-last
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
    matmul_share: float | None  # whole / ceiling of the matrix product
    # A lower bound: weights once per call, inputs and outputs of the graphs; no activation.
    bytes: int
    gb_per_second: float  # bytes / the whole's time
    copy_share: float | None  # of the copy rate


class Roof(NamedTuple):
    """What a time is held against."""

    preset: Preset
    cost: Cost | None  # None without torch, which counts it
    ceilings: Ceilings | None  # None on the CPU


class StageMilliseconds(NamedTuple):
    """Median times of one batch."""

    generator: float
    decoder: float
    whole: float


def measure_ceilings(preset: Preset) -> Ceilings:
    """Measure the first GPU; takes a second or two. Starts CUDA through torch."""
    size, channels = preset.image_size, widest(preset)
    images = max(1, PIXELS // size**2)
    shape = f"{images}x{channels}x{size}x{size}"
    why_not = why_no_torch_cuda()
    if why_not is not None:
        return _unknown(shape, why_not)
    import torch

    torch.cuda.empty_cache()
    try:
        return Ceilings(
            matmul_tflops=matmul_tflops(),
            convolution_tflops=convolution_tflops(images, channels, size),
            convolution=shape,
            copy_gb_per_second=copy_gb_per_second(),
        )
    except RuntimeError as error:  # also of cuBLAS and cuDNN, which need memory of their own
        return _unknown(shape, str(error).strip().partition("\n")[0])


def widest(preset: Preset) -> int:
    """Channels of the decoder's largest convolution, which follows the last upsampling."""
    return preset.codec.ch * max(preset.codec.ch_mult[:2])


def _unknown(shape: str, why_not: str) -> Ceilings:
    return Ceilings(
        matmul_tflops=None,
        convolution_tflops=None,
        convolution=shape,
        copy_gb_per_second=None,
        note=f"ceilings not measured: {why_not}",
    )


def matmul_tflops() -> float:
    """Rate of an fp16 matrix product on the GPU."""
    a, b = (_random(MATRIX, MATRIX) for _ in range(2))
    return 2 * MATRIX**3 / _median_seconds(lambda: a @ b) / 1e12


def convolution_tflops(images: int, channels: int, size: int) -> float:
    """Rate of an fp16 channels-last 3x3 convolution, with the algorithm cuDNN finds fastest."""
    import torch
    from torch.nn.functional import conv2d

    layout = torch.channels_last
    x = _random(images, channels, size, size).to(memory_format=layout)
    weight = _random(channels, channels, 3, 3).to(memory_format=layout)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        taken = _median_seconds(lambda: conv2d(x, weight, padding=1))
    return 2 * 9 * images * channels**2 * size**2 / taken / 1e12


def copy_gb_per_second() -> float:
    """Bytes read and written by a copy inside the GPU's memory."""
    import torch

    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").zero_()
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _median_seconds(lambda: target.copy_(source)) / 1e9


def _random(*shape: int) -> Tensor:
    import torch

    return torch.randn(*shape, device="cuda", dtype=torch.half)


def _median_seconds(compute: Callable[[], Any]) -> float:
    """By CUDA events, after a warm-up."""
    import torch

    timer = TorchEvents()
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            compute()
        marks = [timer.mark()]
        for _ in range(REPEATS):
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
    return Achieved(
        generator_tflops=generator / times.generator / 1e9,
        decoder_tflops=decoder / times.decoder / 1e9,
        whole_tflops=whole,
        matmul_share=_share(whole, ceilings.matmul_tflops if ceilings else None),
        bytes=moved,
        gb_per_second=rate,
        copy_share=_share(rate, ceilings.copy_gb_per_second if ceilings else None),
    )


def _share(rate: float, ceiling: float | None) -> float | None:
    return None if ceiling is None else rate / ceiling


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
        f"ceilings, fp16: matrix product {found.matmul_tflops:.0f} TFLOP/s, 3x3 convolution "
        f"{found.convolution} {found.convolution_tflops:.0f} TFLOP/s; copy "
        f"{found.copy_gb_per_second:,.0f} GB/s"
    )


def main() -> int:
    """Print the ceilings of this machine's GPU; returns the exit code."""
    why_not = why_no_gpu()
    if why_not is not None:
        print(why_not, file=sys.stderr)
        return 1
    print(summary(measure_ceilings(get_preset("lsun"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
