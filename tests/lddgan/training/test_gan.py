"""One step of the GAN: gradients, the moving average, parts of a batch."""

import math

import pytest
import torch

import lddgan.training.generator as gan_module
from lddgan.errors import BadInput
from lddgan.networks import discriminator, layers, ncsnpp
from lddgan.preset import with_values
from lddgan.training.generator import Draws, Gan, discriminator_losses, draw, generator_losses
from lddgan.training.state import set_rate
from tests.lddgan.training.support import ALONE, settings, tiny_preset

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny():
    return tiny_preset()


def new_gan(preset, **changes):
    return Gan(preset, settings(".", **changes), ALONE)


def test_cosine_rate():
    sgd = torch.optim.SGD([torch.zeros(1)])
    rates = {(0.7, None): 1e-3, (0.0, 1e-5): 1e-3, (0.5, 1e-5): 0.505e-3, (1.0, 1e-5): 1e-5}
    for (progress, least), expected in rates.items():
        set_rate(sgd, progress, 1e-3, least)
        assert sgd.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.fixture
def gan64(tiny, monkeypatch):
    """Networks wholly in float64 with every weight moved, so that nothing starts at zero."""
    monkeypatch.setattr(layers.GroupNorm, "forward", torch.nn.GroupNorm.forward)
    monkeypatch.setattr(ncsnpp, "attention", attention64)
    monkeypatch.setattr(discriminator, "sinusoid", lambda t, w: layers.sinusoid(t, w).double())
    torch.manual_seed(0)
    gan = new_gan(tiny)
    for network in (gan.generator, gan.discriminator):
        network.double()
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return gan


def attention64(q, k, v):
    return (q * q.shape[-1] ** -0.5 @ k.transpose(1, 2)).softmax(dim=-1) @ v


def slope(function, parameter, direction, h=1e-7):
    """Central difference along a direction of one parameter; h small, for LeakyReLU has kinks."""
    start = parameter.data.clone()
    parameter.data = start + h * direction
    above = function()
    parameter.data = start - h * direction
    below = function()
    parameter.data = start
    return (above - below) / (2 * h)


def draws64(preset, batch):
    """Draws in float64, the same at every call."""
    torch.manual_seed(1)
    drawn = draw(preset, batch, torch.device("cpu"))
    return Draws(drawn.t, *(tensor.double() for tensor in drawn[1:]))


@pytest.mark.parametrize("which", ["discriminator", "generator"])
@pytest.mark.parametrize("delta", [1.0, None])
def test_gradients_agree_with_finite_differences(gan64, which, delta):
    gan64.cfg = gan64.cfg.model_copy(update={"delta": delta})
    x_0 = torch.rand(4, 4, 8, 8, dtype=torch.float64) - 0.5

    def loss():
        draws = draws64(gan64.preset, 4)
        if which == "discriminator":
            losses = discriminator_losses(gan64, x_0, draws, with_r1=True)
        else:
            losses = generator_losses(gan64, x_0, draws, progress=0.3)
        return torch.stack(list(losses.values())).sum()

    network = getattr(gan64, which)
    network.zero_grad()
    loss().backward()
    for parameter in list(network.parameters())[::7]:
        direction = torch.randn_like(parameter)
        expected = float((parameter.grad * direction).sum())
        found = float(slope(lambda: loss().detach(), parameter, direction))
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_step_moves_each_network_by_its_own_loss_only(tiny):
    torch.manual_seed(0)
    gan = new_gan(tiny)
    x_0, draws = torch.zeros(8, 4, 8, 8), draw(tiny, 8, torch.device("cpu"))
    discriminator_losses(gan, x_0, draws, with_r1=True)["d"].backward()
    assert all(p.grad is None for p in gan.generator.parameters())
    gan.step(x_0, step=0, progress=0.0)
    gan.discriminator.zero_grad()
    gan.discriminator.requires_grad_(False)
    generator_losses(gan, x_0, draws, progress=0.0)["g"].backward()
    assert all(p.grad is None for p in gan.discriminator.parameters())


def test_r1_is_lazy(tiny):
    gan = new_gan(tiny)
    x_0 = torch.zeros(8, 4, 8, 8)
    with_r1 = ["r1" in gan.step(x_0, step, progress=0.0) for step in range(4)]
    assert with_r1 == [True, False, True, False]


@pytest.mark.parametrize(
    ("reconstruction", "delta", "expected"),
    [(False, None, None), (True, None, 1.0), (True, 2.0, 1 / (1 + math.exp(-1.0)))],
)
def test_the_losses_of_table_6(tiny, reconstruction, delta, expected):
    changes = {"reconstruction": reconstruction, "delta": delta}
    preset = tiny.model_copy(update={"training": tiny.training.model_copy(update=changes)})
    torch.manual_seed(0)
    gan, x_0 = new_gan(preset), torch.rand(8, 4, 8, 8)
    draws = draw(preset, 8, torch.device("cpu"))
    losses = generator_losses(gan, x_0, draws, progress=0.25)
    assert list(losses) == ["g"] + ["l1"] * reconstruction
    if reconstruction:
        _, predicted = gan_module.denoise(
            gan, gan_module.forward_pair(preset, x_0, *draws[:3])[1], draws
        )
        unweighted = (x_0 - predicted).abs().mean().item()
        assert losses["l1"].item() == pytest.approx(expected * unweighted, rel=1e-6)


def test_the_average_follows_the_weights(tiny):
    torch.manual_seed(0)
    gan = new_gan(tiny)
    x_0, decay = torch.rand(8, 4, 8, 8), tiny.training.ema_decay
    gan.step(x_0, 0, 0.0)
    weight, average = (n.all_modules[2].weight for n in (gan.generator, gan.ema.module))
    assert torch.equal(weight, average)
    first = weight.detach().clone()
    gan.step(x_0, 1, 0.0)
    assert not torch.equal(weight, first)
    torch.testing.assert_close(average.detach(), decay * first + (1 - decay) * weight.detach())


def test_latents_are_divided_by_the_scale_factor_and_clamped(tiny, monkeypatch):
    gan = new_gan(tiny.model_copy(update={"scale_factor": 0.5}))
    seen = []
    monkeypatch.setattr(gan, "_parts_of", lambda x_0: seen.append(x_0) or iter(()))
    monkeypatch.setattr(gan, "_descend", lambda *parts: seen.append(parts[-1]) or {})
    moments = torch.cat([torch.randn(8, 4, 8, 8), torch.full((8, 4, 8, 8), math.log(2))], dim=1)
    torch.manual_seed(7)
    gan.step(moments, 0, 0.0)
    torch.manual_seed(7)
    expected = (moments[:, :4] + math.sqrt(2) * torch.randn(8, 4, 8, 8)) / 0.5
    torch.testing.assert_close(seen[0], expected.clamp(-1, 1))
    assert seen[0].abs().max() == 1


def after_steps(preset, **changes):
    """The weights and losses after two steps from the same seed."""
    torch.manual_seed(0)
    gan, x_0 = new_gan(preset, **changes), torch.rand(8, 4, 8, 8)
    losses = [gan.step(x_0[gan.rows], step, 0.0) for step in range(2)]
    return gan, losses


def weights_of(gan):
    """A layer of each network and one of the average."""
    networks = (gan.generator, gan.discriminator, gan.ema.module)
    return [next(p for p in network.parameters() if p.ndim == 4) for network in networks]


U_VIT = {"generator.width": 24, "generator.depth": 3, "generator.heads": 3}
KINDS = {"ncsnpp": {}, "wavelet-ncsnpp": {}, "u-vit": U_VIT}


@pytest.fixture(params=KINDS)
def any_kind(tiny, request):
    """The tiny preset with each kind of generator."""
    return with_values(tiny, {"generator.kind": request.param} | KINDS[request.param])


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"channels_last": True}])
def test_parts_of_a_batch_and_layouts_make_the_same_step(any_kind, changes):
    plain, losses = after_steps(any_kind)
    other, others = after_steps(any_kind, **changes)
    for a, b in zip(losses, others, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    for a, b in zip(weights_of(plain), weights_of(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_bf16_stays_near_fp32(any_kind):
    (_, losses), (gan, others) = after_steps(any_kind), after_steps(any_kind, bf16=True)
    for a, b in zip(losses, others, strict=True):
        assert b == pytest.approx(a, rel=0.03, abs=0.01)
        assert b != a
    assert all(p.dtype == torch.float32 for p in gan.generator.parameters())


def test_a_batch_that_cannot_be_cut_into_whole_groups_is_refused(tiny):
    with pytest.raises(BadInput, match="a batch of 8 cannot be cut into 4 parts"):
        new_gan(tiny, accumulate=4)
