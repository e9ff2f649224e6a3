"""What the kernels compute, in plain PyTorch: their specification, and a stand-in on CPUs.

Images are [B,C,h,w]; kernels.py takes and makes them channels-last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from lddgan.networks.haar import Haar, InverseHaar
from lddgan.networks.layers import FirDown, FirUp
from lddgan.networks.quantiser import nearest_code


class Ops(NamedTuple):
    """One implementation of seven functions; those of this module say what they compute."""

    group_norm: Callable[..., Tensor]
    add_: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    nearest_code: Callable[[Tensor, Tensor], Tensor]
    fir_up: Callable[[Tensor], Tensor]
    fir_down: Callable[[Tensor, int, int], Tensor]
    haar: Callable[[Tensor], tuple[Tensor, Tensor]]
    inverse_haar: Callable[[Tensor, Tensor], Tensor]
    errors: tuple[type[Exception], ...] = ()  # that they raise, besides those of PyTorch


def group_norm(
    x: Tensor,
    groups: int,
    eps: float,
    *,
    weight: Tensor | None,
    bias: Tensor | None,
    before: Tensor | None = None,
    silu: bool,
) -> Tensor:
    """Group normalisation of x + before, times weight, plus bias, then SiLU if asked for.

    x [B,C,h,w]; weight, bias and before [1,C] or [B,C], each of unit stride along C, weight and
    bias both or neither.  Statistics and arithmetic are float32, the result is of x's dtype.
    """
    value = x.float()
    if before is not None:
        value = value + before.float()[:, :, None, None]
    value = F.group_norm(value, groups, eps=eps)
    if weight is not None and bias is not None:
        value = value * weight.float()[:, :, None, None] + bias.float()[:, :, None, None]
    return (F.silu(value) if silu else value).to(x.dtype)


def add_(h: Tensor, x: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Write (h + x + bias) * scale over h and return it; computed in float32, rounded once.

    h and x [B,C,h,w], bias float32 [C].
    """
    return h.copy_((h.float() + x.float() + bias[:, None, None]) * scale)


def fir_up(x: Tensor) -> Tensor:
    """`FirUp` in float32, rounded to x's dtype: [B,C,h,w] -> [B,C,2h,2w]."""
    return FirUp(x.shape[1]).to(x.device)(x.float()).to(x.dtype)


def fir_down(x: Tensor, stride: int, padding: int) -> Tensor:
    """`FirDown` in float32, rounded to x's dtype: [B,C,h,w] -> [B,C,h',w']."""
    return FirDown(x.shape[1], padding, stride).to(x.device)(x.float()).to(x.dtype)


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """`Haar` in float32, rounded to x's dtype: [B,C,h,w] -> [B,C,h/2,w/2], [B,3C,h/2,w/2]."""
    low, high = Haar()(x.float())
    return low.to(x.dtype), high.to(x.dtype)


def inverse_haar(low: Tensor, high: Tensor) -> Tensor:
    """`InverseHaar` in float32, rounded to low's dtype: [B,C,h,w], [B,3C,h,w] -> [B,C,2h,2w]."""
    return InverseHaar()(low.float(), high.float()).to(low.dtype)


PLAIN: Final = Ops(group_norm, add_, nearest_code, fir_up, fir_down, haar, inverse_haar)
