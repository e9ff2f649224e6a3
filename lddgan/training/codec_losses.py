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


def straight_through(latent: Tensor, quantised: Tensor) -> Tensor:
    """The value of `quantised`, to the last bit, with its gradient going to `latent`: [B,C,h,w]."""
    return quantised.detach() + (latent - latent.detach())


def vq_losses(latent: Tensor, quantised: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(codebook |sg(z_e) - e|^2, commitment beta |z_e - sg(e)|^2), means over all elements.

    latent z_e [B,C,h,w], its codes e [B,C,h,w] (arXiv 1711.00937, equation 3).
    """
    codebook = (latent.detach() - quantised).square().mean()
    return codebook, beta * (latent - quantised.detach()).square().mean()
