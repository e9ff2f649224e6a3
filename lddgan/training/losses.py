"""The losses of LDDGAN, as pure functions of tensors (arXiv 2406.11713, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def widened(x: Tensor) -> Tensor:
    """bfloat16, as networks give it under autocast -> float32, in which losses are computed."""
    return x.float() if x.dtype == torch.bfloat16 else x


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Non-saturating: softplus(-D(real)) + softplus(D(fake)), logits [B,1] -> scalar."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating: softplus(-D(fake)), logits [B,1] -> scalar."""
    return F.softplus(-fake).mean()


def r1_penalty(real: Tensor, x_t: Tensor, gamma: float) -> Tensor:
    """gamma/2 |grad D|^2 with respect to the real x_t [B,C,h,w], mean over the batch -> scalar.

    real [B,1] must depend on x_t; the result can be differentiated again (arXiv 1801.04406).
    """
    (gradient,) = torch.autograd.grad(real.sum(), x_t, create_graph=True)
    return gamma / 2 * gradient.square().sum(dim=(1, 2, 3)).mean()


def reconstruction_loss(x_0: Tensor, predicted: Tensor) -> Tensor:
    """|x_0 - x_0'|_1, the mean over all elements (equation 8) -> scalar."""
    return (x_0 - predicted).abs().mean()


def reconstruction_weight(progress: float, delta: float | None) -> float:
    """Weighted Learning (equation 9): lambda = 1 - sigmoid(phi), phi from -delta to +delta.

    progress runs from 0 (first step) to 1 (end of the training).  Without a delta lambda is 1.
    """
    if delta is None:
        return 1.0
    phi = (2 * progress - 1) * delta
    return (1 - math.tanh(phi / 2)) / 2  # the same, and no exp that overflows
