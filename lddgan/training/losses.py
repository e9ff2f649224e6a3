"""The losses of both trainings, as pure functions of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def widened(x: Tensor) -> Tensor:
    """bfloat16, as networks give it under autocast -> float32, in which losses are computed."""
    return x.float() if x.dtype == torch.bfloat16 else x


# ---- the generator's (arXiv 2406.11713, section 3) ----


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


def reconstruction_weight(progress: float, delta: float | None) -> float:
    """Weighted Learning (equation 9): lambda = 1 - sigmoid(phi), phi from -delta to +delta.

    progress runs from 0 (first step) to 1 (end of the training).  Without a delta lambda is 1.
    """
    if delta is None:
        return 1.0
    phi = (2 * progress - 1) * delta
    return (1 - math.tanh(phi / 2)) / 2  # the same, and no exp that overflows


# ---- the autoencoder's (arXiv 2012.09841) ----


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 mean relu(1 - D(real)) + 1/2 mean relu(1 + D(fake)), logits [B,1,h,w] -> scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(nll_gradient: Tensor, g_gradient: Tensor) -> Tensor:
    """The weight of the adversarial loss: |grad nll| / (|grad g| + 1e-4), at most 1e4.

    Both gradients are with respect to the decoder's last layer (equation 7); the scalar that is
    returned has none.
    """
    nll, g = (torch.linalg.vector_norm(v.detach()) for v in (nll_gradient, g_gradient))
    return (nll / (g + 1e-4)).clamp(0, 1e4)
