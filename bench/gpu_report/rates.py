"""Rates of single convolutions and kernels, in the shapes of lsun's decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench.roofline import channels_last
from engine.backends.fused.reference import PLAIN
from engine.backends.fused.run import why
from engine.timing import median_ms, torch_timer
from lddgan.names import Device

if TYPE_CHECKING:
    from torch import Tensor

    from engine.backends.fused.reference import Ops

Work = tuple[Callable[[], object], int]  # what runs, and its FLOP, or the least bytes it moves

WARM_UPS: Final = 3
REPEATS: Final = 12
GROUPS: Final = 32
EPSILON: Final = 1e-6
SHRUNK: Final = 16  # a dry run has images of so many pixels a side, two of them


class Conv(NamedTuple):
    """A convolution; of stride 2 and transposed if `up`."""

    batch: int
    channels: int
    size: int  # of the input's side
    out: int  # channels
    kernel: int
    up: bool = False

    @property
    def name(self) -> str:
        kind = "transposed " if self.up else ""
        image = f"{self.batch}x{self.channels}x{self.size}x{self.size}"
        return f"{kind}{self.kernel}x{self.kernel} {image} to {self.out}"


CONVOLUTIONS: Final = (
    Conv(100, 512, 64, 512, 3),
    Conv(100, 256, 128, 256, 3),
    Conv(100, 128, 256, 128, 3),
    Conv(100, 512, 32, 512, 3),
    Conv(100, 512, 128, 256, 3),
    Conv(100, 256, 256, 128, 3),
    Conv(100, 256, 256, 128, 1),
    Conv(1, 512, 64, 512, 3),
    Conv(1, 128, 256, 128, 3),
    Conv(100, 128, 256, 3, 3),  # the last one, and what it would be with padded channels
    Conv(100, 128, 256, 8, 3),
    Conv(100, 512, 64, 512, 4, up=True),  # upsampling, and one of the four that could stand for it
    Conv(100, 512, 64, 512, 2),
    Conv(100, 256, 128, 256, 4, up=True),
    Conv(100, 256, 128, 256, 2),
)
IMAGES: Final = ((100, 128, 256), (100, 256, 128), (100, 512, 64), (1, 128, 256))  # B, C, side
FIR: Final = (100, 256, 16)  # resampled by the generator: to twice the side, and back
CODES: Final = (100, 4096, 8192, 3)  # celeba_256's search: images, vectors, codes, length


def measure_rates(device: Device, shrunk: bool, ops: Ops | None = None) -> dict[str, Any]:
    """TFLOP/s of the convolutions as cuDNN runs them, and GB/s of the kernels, by their shapes.

    One that fails has the reason in their place.
    """
    import torch

    if ops is None:
        ops = kernels_of(device)
    rates: dict[str, dict[str, Any]] = {}
    known: tuple[type[Exception], ...] = (RuntimeError, *ops.errors)
    timer = torch_timer(device)

    def rate(name: str, unit: str, per_ms: float, prepare: Callable[[], Work]) -> None:
        try:
            run, amount = prepare()
            ms = median_ms(timer, run, REPEATS, WARM_UPS)
            rates[name] = {"ms": round(ms, 4), unit: round(amount / ms / per_ms, 3)}
        except known as error:
            rates[name] = {"why_not": why(error)}

    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        for conv in CONVOLUTIONS:
            rate(conv.name, "tflops", 1e9, partial(convolution, device, conv, shrunk))
        for name, prepare in passes(device, ops, shrunk):
            rate(name, "gb_per_second", 1e6, prepare)
    return rates


def kernels_of(device: Device) -> Ops:
    """The Triton kernels; plain PyTorch stands for them on a CPU."""
    if device == "cpu":
        return PLAIN
    from engine.backends.fused.kernels import TRITON

    return TRITON


def convolution(device: Device, conv: Conv, shrunk: bool) -> Work:
    """It on random values, and its FLOP."""
    from torch.nn.functional import conv2d, conv_transpose2d

    batch, side = (2, SHRUNK) if shrunk else (conv.batch, conv.size)
    x = channels_last(device, batch, conv.channels, side, side)
    ends = (conv.channels, conv.out) if conv.up else (conv.out, conv.channels)
    weight = channels_last(device, *ends, conv.kernel, conv.kernel)

    def run() -> Tensor:
        if conv.up:
            return conv_transpose2d(x, weight, stride=2, padding=1)
        return conv2d(x, weight, padding=conv.kernel // 2)

    macs = conv.channels * conv.kernel**2 // (4 if conv.up else 1)  # for one value of the output
    return run, 2 * macs * run().numel()


def passes(device: Device, ops: Ops, shrunk: bool) -> Iterator[tuple[str, Callable[[], Work]]]:
    """Kernels that read their input and write their output, and compute little.

    Every Triton kernel; a group normalisation as a whole, and its moments alone.
    """
    for batch, channels, side in IMAGES:
        shape = (2, channels, SHRUNK, SHRUNK) if shrunk else (batch, channels, side, side)
        name = f"{batch}x{channels}x{side}x{side}"
        yield f"group_norm {name}", partial(group_norm, device, ops, shape)
        yield f"add {name}", partial(add, device, ops, shape)
        if device == "cuda":
            yield f"moments {name}", partial(moments, device, shape)
    batch, channels, side = (2, *FIR[1:]) if shrunk else FIR
    name = f"{batch}x{channels}x{side}x{side}"
    for up in (True, False):
        kind = "fir_up" if up else "fir_down to"
        yield f"{kind} {name}", partial(resample, device, ops, (batch, channels, side), up)
    images, vectors, codes, length = (1, SHRUNK, *CODES[2:]) if shrunk else CODES
    name = f"nearest_code {images}x{vectors} in {codes}x{length}"
    yield name, partial(search, device, ops, (images, vectors, length), codes)


def group_norm(device: Device, ops: Ops, shape: tuple[int, ...]) -> Work:
    import torch

    x, vector = channels_last(device, *shape), torch.randn(1, shape[1], device=device)
    options: dict[str, Any] = {"weight": vector, "bias": vector, "before": vector, "silu": True}
    return lambda: ops.group_norm(x, GROUPS, EPSILON, **options), 3 * x.nbytes


def add(device: Device, ops: Ops, shape: tuple[int, ...]) -> Work:
    import torch

    x, y = channels_last(device, *shape), channels_last(device, *shape)
    bias = torch.randn(shape[1], device=device)
    return lambda: ops.add_(x, y, bias, 0.7), 3 * x.nbytes


def moments(device: Device, shape: tuple[int, ...]) -> Work:
    from engine.backends.fused.kernels import moments_of

    x = channels_last(device, *shape)
    return lambda: moments_of(x), x.nbytes


def resample(device: Device, ops: Ops, small: tuple[int, int, int], up: bool) -> Work:
    batch, channels, side = small
    x, y = (channels_last(device, batch, channels, size, size) for size in (side, 2 * side))
    return lambda: ops.fir_up(x) if up else ops.fir_down(y, 2, 1), x.nbytes + y.nbytes


def search(device: Device, ops: Ops, shape: tuple[int, ...], codes: int) -> Work:
    """The nearest code of each vector [images,vectors,length], float32."""
    import torch

    given = torch.randn(shape, device=device)
    codebook = torch.randn(codes, shape[-1], device=device)
    return lambda: ops.nearest_code(given, codebook), given.nbytes
