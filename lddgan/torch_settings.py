"""How PyTorch computes: whole float32, denormals, where a network lies and in which layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from lddgan import memory
from lddgan.names import Precision


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Switch TF32 off, which PyTorch takes on a GPU for convolutions, and for products if told to.

    PyTorch has an old setting for all products and, since 2.9, one for each backend's, and refuses
    to compute where they contradict each other: all are restored.
    """
    backends: Any = torch.backends
    products = (backends.cuda.matmul, backends.mkldnn.matmul)
    new = [product.fp32_precision for product in products]
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:  # PyTorch does not tell it where only the new ones were changed
        old = "highest"
    torch.set_float32_matmul_precision("highest")  # sets the new ones too
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(old)
        for product, precision in zip(products, new, strict=True):
            product.fp32_precision = precision


@contextmanager
def flushing_denormals() -> Iterator[None]:
    """Take numbers near zero for zero on a CPU: with them Adam's averages are slow."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def pytorch_memory_named() -> AbstractContextManager[None]:
    """Turn PyTorch's lack of memory into OutOfMemory."""
    advice = "run fewer images at once, or end what else uses it"
    return memory.memory_named(f"PyTorch found too little memory on {{}}; {advice}")


def channels_last(module: nn.Module) -> nn.Module:
    """Lay out the kernels of the convolutions, in place, so that channels are innermost."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def memory_format(precision: Precision) -> torch.memory_format:
    """The layout of 4-dimensional tensors in a precision."""
    return torch.channels_last if precision == "fp16" else torch.contiguous_format


def where(device: str, precision: Precision, nhwc: bool = False) -> str:
    """The device and the layout, for people."""
    if device == "cuda":
        special = ", channels-last" if nhwc or precision == "fp16" else ""
        return torch.cuda.get_device_name() + special
    return f"CPU ({torch.get_num_threads()} threads)" + (", channels-last" if nhwc else "")
