"""The losses of both trainings in closed form, and their gradients."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from lddgan.networks.autoencoder import kl_divergence
from lddgan.networks.quantiser import straight_through, vq_losses
from lddgan.training.losses import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    hinge_discriminator_loss,
    r1_penalty,
    reconstruction_weight,
)

LN2 = math.log(2)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# The generator's.


def test_non_saturating_losses_in_closed_form():
    zero = torch.zeros(5, 1)
    assert discriminator_loss(zero, zero).item() == pytest.approx(2 * LN2)
    assert generator_loss(zero).item() == pytest.approx(LN2)
    real, fake = torch.tensor([[3.0], [-1.0]]), torch.tensor([[0.5], [-2.0]])
    expected = sum(math.log1p(math.exp(-v)) for v in (3.0, -1.0)) / 2
    expected += sum(math.log1p(math.exp(v)) for v in (0.5, -2.0)) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(expected, rel=1e-6)
    expected = sum(math.log1p(math.exp(-v)) for v in (0.5, -2.0)) / 2
    assert generator_loss(fake).item() == pytest.approx(expected, rel=1e-6)


def test_r1_of_a_quadratic_discriminator():
    # D(x) = 1/2 sum a x^2 has gradient a x: R1 = gamma/2 mean_batch sum (a x)^2.
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    a = torch.rand(2, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty((0.5 * a * x**2).sum(dim=(1, 2, 3))[:, None], x, gamma=0.3)
    assert penalty.item() == pytest.approx(0.15 * ((a * x) ** 2).sum().item() / 3)
    penalty.backward()  # and its own gradient with respect to D's weights: gamma a mean x^2
    torch.testing.assert_close(a.grad, 0.3 * a.detach() * (x.detach() ** 2).sum(dim=0) / 3)


def test_reconstruction_weight_falls_from_one_to_zero():
    assert reconstruction_weight(0.0, 6.0) == pytest.approx(1 - 1 / (1 + math.exp(6)))
    assert reconstruction_weight(0.5, 6.0) == 0.5
    assert reconstruction_weight(1.0, 6.0) == pytest.approx(1 / (1 + math.exp(6)))
    assert reconstruction_weight(0.25, 6.0) == pytest.approx(1 / (1 + math.exp(-3)))
    assert reconstruction_weight(0.7, None) == 1  # without Weighted Learning
    assert reconstruction_weight(1.0, 1e9) == 0 and reconstruction_weight(0.0, 1e9) == 1


def test_kl_in_closed_form():
    mean = torch.full((2, 1, 3, 3), 2.0)
    zero = torch.zeros_like(mean)
    assert kl_divergence(zero, zero).item() == 0
    assert kl_divergence(mean, zero).item() == pytest.approx(9 * 2.0)
    assert kl_divergence(zero, zero + math.log(4)).item() == pytest.approx(9 * (1.5 - LN2))


# The autoencoder's: adversarial.


def test_hinge_loss_in_closed_form():
    real = torch.tensor([2.0, 0.5, -1.0, 1.0]).view(2, 1, 1, 2)  # 1 - D: clipped, 0.5, 2, 0
    fake = torch.tensor([-3.0, 0.25, -1.0, 2.0]).view(2, 1, 1, 2)  # 1 + D: clipped, 1.25, 0, 3
    assert hinge_discriminator_loss(real, fake).item() == (2.5 / 4 + 4.25 / 4) / 2
    zero = torch.zeros(3, 1, 2, 2)
    assert hinge_discriminator_loss(zero, zero).item() == 1
    assert hinge_discriminator_loss(zero + 1, zero - 1).item() == 0  # nothing left to learn


def test_gradients_of_the_hinge_loss():
    assert gradcheck(hinge_discriminator_loss, (doubles(2, 1, 3, 3), doubles(2, 1, 3, 3)))


def test_adaptive_weight_of_a_quadratic():
    # nll = a/2 |w|^2 has gradient a w, g = c.w has gradient c: the weight is a |w| / (|c| + 1e-4).
    w, c = doubles(4, 3, 3, 3), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    (nll,) = torch.autograd.grad(1.7 * w.square().sum() / 2, w, create_graph=True)
    (g,) = torch.autograd.grad((c * w).sum(), w)
    weight = adaptive_weight(nll, g)
    expected = 1.7 * sum(v**2 for v in w.flatten().tolist()) ** 0.5
    expected /= sum(v**2 for v in c.flatten().tolist()) ** 0.5 + 1e-4
    assert weight.shape == () and not weight.requires_grad
    assert weight.item() == pytest.approx(expected, rel=1e-12)


def test_adaptive_weight_stays_within_its_bounds():
    one, zero = torch.ones(4), torch.zeros(4)
    assert adaptive_weight(one, zero).item() == 1e4  # 2 / 1e-4 is more
    assert adaptive_weight(0.25 * one, zero).item() == pytest.approx(0.5 / 1e-4)
    assert adaptive_weight(zero, one).item() == 0
    assert adaptive_weight(zero, zero).item() == 0
    assert adaptive_weight(one * torch.nan, one).isnan()  # for the check of losses to see


# The autoencoder's: quantisation.


def test_straight_through_keeps_value_and_passes_gradient():
    latent, quantised = 1e3 * doubles(2, 3, 4, 4), doubles(2, 3, 4, 4)
    latent.retain_grad()
    through = straight_through(latent, quantised)
    assert torch.equal(through, quantised)
    factor = torch.randn_like(through)
    (factor * through).sum().backward()
    assert torch.equal(latent.grad, factor) and quantised.grad is None


def test_vq_losses_in_closed_form():
    latent = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)
    quantised = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)  # squares of 1 and 4: mean 8.5
    assert [v.item() for v in vq_losses(latent, quantised, beta=0.25)] == [8.5, 2.125]
    assert [v.item() for v in vq_losses(latent, quantised, beta=1.0)] == [8.5, 8.5]
    assert [v.item() for v in vq_losses(latent, latent, beta=0.25)] == [0, 0]


def test_each_vq_loss_moves_one_side():
    latent, quantised = doubles(2, 3, 2, 2), doubles(2, 3, 2, 2)
    assert gradcheck(lambda e: vq_losses(latent, e, 0.25)[0], (quantised,))
    assert gradcheck(lambda z: vq_losses(z, quantised, 0.4)[1], (latent,))
    codebook, commitment = vq_losses(latent, quantised, 0.25)
    assert torch.autograd.grad(codebook, latent, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(commitment, quantised, allow_unused=True) == (None,)
