"""Rates of single convolutions and kernels, in the shapes of lsun's decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench.roofline import Device, channels_last
from engine.backends.fused.reference import PLAIN
from engine.backends.fused.run import why
from engine.timing import median_ms, torch_timer

if TYPE_CHECKING:
    from torch import Tensor

    from engine.backends.fused.reference import Ops

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

    @property
    def macs(self) -> int:
        """Multiply-adds for one value of the output."""
        return self.channels * (self.kernel**2 // 4 if self.up else self.kernel**2)


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

    ops = ops or kernels_of(device)
    rates: dict[str, dict[str, Any]] = {}
    known: tuple[type[Exception], ...] = (RuntimeError, *ops.errors)

    def rate(name: str, measure: Callable[[], dict[str, float]]) -> None:
        try:
            rates[name] = measure()
        except known as error:
            rates[name] = {"why_not": why(error)}

    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        for conv in CONVOLUTIONS:
            rate(conv.name, partial(rate_of_convolution, device, conv, shrunk))
        for one in passes(device, ops, shrunk):
            rate(one.name, partial(rate_of_pass, device, one))
    return rates


def kernels_of(device: Device) -> Ops:
    """The Triton kernels; plain PyTorch stands for them on a CPU."""
    if device == "cpu":
        return PLAIN
    from engine.backends.fused.kernels import TRITON

    return TRITON


def rate_of_convolution(device: Device, conv: Conv, shrunk: bool) -> dict[str, float]:
    run = convolution(device, conv._replace(batch=2, size=SHRUNK) if shrunk else conv)
    flop, ms = 2 * conv.macs * run().numel(), milliseconds(device, run)
    return {"ms": round(ms, 4), "tflops": round(flop / ms / 1e9, 3)}


def rate_of_pass(device: Device, one: Pass) -> dict[str, float]:
    ms = milliseconds(device, one.run)
    return {"ms": round(ms, 4), "gb_per_second": round(one.moved / ms / 1e6, 1)}


def milliseconds(device: Device, run: Callable[[], object]) -> float:
    return median_ms(torch_timer(device), run, REPEATS, WARM_UPS)


def convolution(device: Device, conv: Conv) -> Callable[[], Tensor]:
    """A function that runs it once, on random values."""
    from torch.nn.functional import conv2d, conv_transpose2d

    x = channels_last(device, conv.batch, conv.channels, conv.size, conv.size)
    sides = (conv.channels, conv.out) if conv.up else (conv.out, conv.channels)
    weight = channels_last(device, *sides, conv.kernel, conv.kernel)
    if conv.up:
        return lambda: conv_transpose2d(x, weight, stride=2, padding=1)
    padding = conv.kernel // 2
    return lambda: conv2d(x, weight, padding=padding)


class Pass(NamedTuple):
    """A kernel that reads its input and writes its output, and computes little."""

    name: str
    run: Callable[[], object]
    moved: int  # bytes, at least


def passes(device: Device, ops: Ops, shrunk: bool) -> Iterator[Pass]:
    """Every Triton kernel; a group normalisation as a whole, and its moments alone."""
    for batch, channels, side in IMAGES:
        shape = (2, channels, SHRUNK, SHRUNK) if shrunk else (batch, channels, side, side)
        yield from between_convolutions(device, ops, shape, f"{batch}x{channels}x{side}x{side}")
    batch, channels, side = (2, *FIR[1:]) if shrunk else FIR
    x, y = (channels_last(device, batch, channels, size, size) for size in (side, 2 * side))
    name = f"{batch}x{channels}x{side}x{side}"
    moved = size_of(x) + size_of(y)
    yield Pass(f"fir_up {name}", lambda: ops.fir_up(x), moved)
    yield Pass(f"fir_down to {name}", lambda: ops.fir_down(y, 2, 1), moved)
    yield search(device, ops, *((1, SHRUNK, *CODES[2:]) if shrunk else CODES))


def between_convolutions(
    device: Device, ops: Ops, shape: tuple[int, ...], name: str
) -> Iterator[Pass]:
    """What a residual block computes besides its convolutions, on images [B,C,h,w]."""
    import torch

    x, y = channels_last(device, *shape), channels_last(device, *shape)
    bias, vector = torch.randn(shape[1], device=device), torch.randn(1, shape[1], device=device)
    options: dict[str, Any] = {"weight": vector, "bias": vector, "before": vector, "silu": True}
    size = size_of(x)
    yield Pass(
        f"group_norm {name}", lambda: ops.group_norm(x, GROUPS, EPSILON, **options), 3 * size
    )
    yield Pass(f"add {name}", lambda: ops.add_(x, y, bias, 0.7), 3 * size)
    if device == "cuda":
        from engine.backends.fused.kernels import moments_of

        yield Pass(f"moments {name}", lambda: moments_of(x), size)


def search(device: Device, ops: Ops, images: int, vectors: int, codes: int, length: int) -> Pass:
    """The nearest code of each vector, float32."""
    import torch

    given = torch.randn(images, vectors, length, device=device)
    codebook = torch.randn(codes, length, device=device)
    name = f"nearest_code {images}x{vectors} in {codes}x{length}"
    return Pass(name, lambda: ops.nearest_code(given, codebook), size_of(given))


def size_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
