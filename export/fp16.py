"""fp16: which parts become half precision, and whether their range suffices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from export.modules import DecoderToImage, GeneratorStep
from lddgan.errors import LddganError
from lddgan.networks.layers import FirDown, FirUp

LARGEST_ALLOWED = 32768.0  # half of what fp16 can hold


def to_half(module: nn.Module) -> nn.Module:
    """Convert a graph's module to fp16, in place.

    float32 stay: the posterior, the codebook and its search, and the FIR filters, for which
    TensorRT 11.2 has no fp16 kernel (NVIDIA/TensorRT issue 4838).  Statistics of normalisation and
    softmax are float32 in the networks themselves.
    """
    if isinstance(module, GeneratorStep):
        module.generator.half()
        for layer in module.modules():
            if isinstance(layer, FirDown | FirUp):
                layer.float()
    elif isinstance(module, DecoderToImage):
        for part in module.autoencoder.decoding:
            part.half()
    return module


class HalfRange(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs fp16 operations as tensor cores do, and records the largest fp16 magnitude.

    Inputs are fp16, accumulation is float32, the result is rounded to fp16.  (CPUs often have no
    fp16 convolution, or a very slow one.)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0.0
        self.finite = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        is_cast = func is torch.ops.aten._to_copy.default  # which names its result's own dtype
        if is_cast or not any(map(_is_half, tree_leaves(given))):
            return tree_map(self._see, func(*given[0], **given[1]))
        args, kwargs = tree_map(lambda value: value.float() if _is_half(value) else value, given)
        return tree_map(self._round, func(*args, **kwargs))

    def _round(self, value: Any) -> Any:
        is_float = isinstance(value, Tensor) and value.dtype == torch.float32
        return self._see(value.half()) if is_float else value

    def _see(self, value: Any) -> Any:
        if _is_half(value) and value.numel():
            self.finite = self.finite and bool(value.isfinite().all())
            self.largest = max(self.largest, float(value.abs().max()))
        return value


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.half


def largest_magnitude(what: str, run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Run `run`; returns its result and the largest magnitude of its fp16 tensors.

    Raises LddganError if an fp16 tensor has NaN or Inf, or a magnitude above 32,768.
    """
    with torch.no_grad(), HalfRange() as seen:
        result = run()
    if not seen.finite or seen.largest > LARGEST_ALLOWED:
        found = f"{seen.largest:,.0f}" if seen.finite else "NaN or Inf"
        raise LddganError(
            f"the {what} does not fit fp16: a tensor reaches {found}, and {LARGEST_ALLOWED:,.0f} "
            "is the limit; export it with --precision fp32"
        )
    return result, seen.largest
