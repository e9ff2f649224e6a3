"""The losses of the VQGAN autoencoder, as pure functions of tensors (arXiv 2012.09841)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHT_EPS = 1e-4  # of the adaptive weight
WEIGHT_MOST = 1e4


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 mean relu(1 - D(real)) + 1/2 mean relu(1 + D(fake)), logits [B,1,h,w] -> scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-mean D(fake), logits [B,1,h,w] -> scalar."""
    return -fake.mean()


def adaptive_weight(nll_gradient: Tensor, g_gradient: Tensor) -> Tensor:
    """The weight of the adversarial loss: |grad nll| / (|grad g| + 1e-4), at most 1e4.

    Both gradients are with respect to the decoder's last layer (equation 7); the scalar that is
    returned has none.
    """
    nll, g = (torch.linalg.vector_norm(v.detach()) for v in (nll_gradient, g_gradient))
    return (nll / (g + WEIGHT_EPS)).clamp(0, WEIGHT_MOST)
