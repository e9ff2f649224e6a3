"""Losses in closed form, gradients, resumption, and that training trains."""

import math
from pathlib import Path

import pytest
import torch

import lddgan.training.gan as gan_module
import lddgan.training.state as state_module
from lddgan.checkpoint import load_checkpoint
from lddgan.data.digits import digits
from lddgan.errors import BadInput, LddganError
from lddgan.networks import discriminator, generator, layers
from lddgan.networks.autoencoder import Autoencoder
from lddgan.presets import get_preset
from lddgan.training import GENERATOR_STATE, MODEL_FILE, train
from lddgan.training.codec import draw_latent, measure_scale_factor, train_autoencoder
from lddgan.training.gan import Gan, Latents, discriminator_losses, generator_losses
from lddgan.training.losses import (
    autoencoder_loss,
    discriminator_loss,
    generator_loss,
    kl_divergence,
    r1_penalty,
    reconstruction_loss,
    reconstruction_weight,
)
from lddgan.training.state import rate_at

LN2 = math.log(2)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks as small as these gain nothing from more, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images():
    return digits()[:24]


@pytest.fixture(scope="module")
def tiny():
    """The digits preset with small networks, batch 8 and two epochs: six steps on 24 images."""
    preset = get_preset("digits")
    changed = {
        "generator": {"nf": 8, "nz": 6, "z_emb_dim": 8, "mapping_layers": 1},
        "discriminator": {"ngf": 4, "t_emb_dim": 8, "layers": 2},
        "training": {"batch": 8, "epochs": 2, "r1_every": 2},
        "codec_training": {"batch": 8, "epochs": 2},
    }
    return preset.model_copy(
        update={name: getattr(preset, name).model_copy(update=u) for name, u in changed.items()}
    )


class Interrupted(Exception):
    """Stands for a power cut."""


# Losses.


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


def test_reconstruction_loss_is_a_mean_of_absolute_differences():
    x_0 = torch.zeros(2, 1, 1, 2)
    assert reconstruction_loss(x_0, torch.tensor([[[[1.0, -3.0]]], [[[0.0, 2.0]]]])).item() == 1.5


def test_kl_in_closed_form():
    mean = torch.full((2, 1, 3, 3), 2.0)
    zero = torch.zeros_like(mean)
    assert kl_divergence(zero, zero).item() == 0
    assert kl_divergence(mean, zero).item() == pytest.approx(9 * 2.0)
    assert kl_divergence(zero, zero + math.log(4)).item() == pytest.approx(9 * (1.5 - LN2))
    image = torch.zeros(2, 3, 2, 2)
    l1, kl = autoencoder_loss(image, image + 0.5, mean, zero, kl_weight=0.1)
    assert l1.item() == 0.5 and kl.item() == pytest.approx(0.1 * 18 / 12)


def test_cosine_rate():
    assert rate_at(0.7, 1e-3, None) == 1e-3
    assert rate_at(0.0, 1e-3, 1e-5) == pytest.approx(1e-3)
    assert rate_at(0.5, 1e-3, 1e-5) == pytest.approx((1e-3 + 1e-5) / 2)
    assert rate_at(1.0, 1e-3, 1e-5) == pytest.approx(1e-5)


# One step of the GAN.


@pytest.fixture
def gan64(tiny, monkeypatch):
    """Networks wholly in float64 with every weight moved, so that nothing starts at zero."""
    monkeypatch.setattr(layers.GroupNorm, "forward", torch.nn.GroupNorm.forward)
    monkeypatch.setattr(generator, "attention", attention64)
    monkeypatch.setattr(discriminator, "sinusoid", lambda t, w: layers.sinusoid(t, w).double())
    torch.manual_seed(0)
    gan = Gan(tiny, "cpu")
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


@pytest.mark.parametrize("stage", ["discriminator", "generator"])
def test_gradients_agree_with_finite_differences(gan64, stage):
    x_0 = torch.rand(4, 4, 8, 8, dtype=torch.float64) - 0.5

    def loss():
        torch.manual_seed(1)
        if stage == "discriminator":
            losses = discriminator_losses(gan64, x_0, with_r1=True)
        else:
            losses = generator_losses(gan64, x_0, progress=0.3)
        return torch.stack(list(losses.values())).sum()

    network = getattr(gan64, stage)
    network.zero_grad()
    loss().backward()
    for parameter in list(network.parameters())[::7]:
        direction = torch.randn_like(parameter)
        expected = float((parameter.grad * direction).sum())
        found = float(slope(lambda: loss().detach(), parameter, direction))
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_step_moves_each_network_by_its_own_loss_only(tiny):
    torch.manual_seed(0)
    gan = Gan(tiny, "cpu")
    discriminator_losses(gan, torch.zeros(4, 4, 8, 8), with_r1=True)["d"].backward()
    assert all(p.grad is None for p in gan.generator.parameters())
    gan.step(torch.zeros(4, 4, 8, 8), step=0, progress=0.0)
    gan.discriminator.zero_grad()
    gan.discriminator.requires_grad_(False)
    generator_losses(gan, torch.zeros(4, 4, 8, 8), progress=0.0)["g"].backward()
    assert all(p.grad is None for p in gan.discriminator.parameters())


def test_r1_is_lazy(tiny):
    gan = Gan(tiny, "cpu")
    x_0 = torch.zeros(4, 4, 8, 8)
    with_r1 = ["r1" in gan.step(x_0, step, progress=0.0) for step in range(4)]
    assert with_r1 == [True, False, True, False]


def test_the_average_follows_the_weights(tiny):
    torch.manual_seed(0)
    gan = Gan(tiny, "cpu")
    x_0, decay = torch.rand(4, 4, 8, 8), tiny.training.ema_decay
    gan.step(x_0, 0, 0.0)
    weight, average = (n.all_modules[2].weight for n in (gan.generator, gan.ema.module))
    assert torch.equal(weight, average)
    first = weight.detach().clone()
    gan.step(x_0, 1, 0.0)
    assert not torch.equal(weight, first)
    torch.testing.assert_close(average.detach(), decay * first + (1 - decay) * weight.detach())


def test_latents_are_samples_of_the_posterior_over_the_scale_factor(tiny, images):
    torch.manual_seed(0)
    moments = torch.cat([torch.full((1, 4, 50, 50), 3.0), torch.full((1, 4, 50, 50), LN2)], dim=1)
    drawn = draw_latent(moments, is_kl=True)
    assert drawn.mean().item() == pytest.approx(3, abs=0.05)
    assert drawn.var().item() == pytest.approx(2, abs=0.1)

    autoencoder = Autoencoder(tiny).eval().requires_grad_(False)
    preset = tiny.model_copy(update={"scale_factor": 0.5})
    index = torch.tensor([5, 0])

    class OnDisk:  # images that are no tensor are encoded batch by batch
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return images[index]

    draws = []
    for source in (images, OnDisk()):
        torch.manual_seed(7)
        draws.append(Latents(preset, autoencoder, source, "cpu").draw(index))
    torch.testing.assert_close(draws[0], draws[1], rtol=1e-4, atol=1e-5)
    mean, logvar = autoencoder.moments(images[index])
    torch.manual_seed(7)
    expected = (mean + (logvar / 2).exp() * torch.randn_like(mean)) / 0.5
    torch.testing.assert_close(draws[0], expected.clamp(-1, 1), rtol=1e-4, atol=1e-5)
    assert draws[0].abs().max() == 1


@pytest.mark.parametrize("covered", [0.5, 0.95, 1.0])
def test_the_scale_factor_covers_a_share_of_the_latents(tiny, images, covered):
    torch.manual_seed(0)
    autoencoder = Autoencoder(tiny).eval()
    scale = measure_scale_factor(autoencoder, images, covered)
    inside = autoencoder.encode(images).abs() <= scale * (1 + 1e-5)
    assert inside.float().mean().item() == pytest.approx(covered, abs=1e-3)


# Whole runs.


def test_a_few_steps_reduce_the_autoencoder_loss(tiny, images, tmp_path):
    def l1(autoencoder):
        return (autoencoder.decode(autoencoder.encode(images)) - images).abs().mean().item()

    losses = []
    for epochs in (1, 12):
        state = tmp_path / f"{epochs}.pt"
        losses.append(
            l1(train_autoencoder(tiny, images, seed=0, state=state, epochs=epochs, log=print))
        )
    assert losses[1] < 0.8 * losses[0]


def quiet(line: str) -> None:
    pass


def test_resumed_equals_uninterrupted_bit_for_bit(tiny, images, tmp_path, monkeypatch):
    whole = train(tiny, images, seed=1, out=tmp_path / "whole", device="cpu", log=quiet)
    out = tmp_path / "cut"
    monkeypatch.setattr(state_module, "SAVE_SECONDS", 0.0)
    steps = iter(range(100))
    gan_step, codec_step = Gan.step, train_autoencoder.__globals__["codec_step"]

    def cut(step):  # in the middle of either stage, after at least one saving
        def cut_step(*arguments):
            if next(steps) in (4, 10):
                raise Interrupted
            return step(*arguments)

        return cut_step

    monkeypatch.setattr(Gan, "step", cut(gan_step))
    monkeypatch.setitem(train_autoencoder.__globals__, "codec_step", cut(codec_step))
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(tiny, images, seed=1, out=out, resume=True, device="cpu", log=quiet)
        assert not (out / MODEL_FILE).exists()
    resumed = train(tiny, images, seed=1, out=out, resume=True, device="cpu", log=quiet)

    assert next(steps) == 14  # 6 + 6 steps and the two that were cut: none was made twice
    assert resumed.preset == whole.preset
    for name in ("generator", "autoencoder"):
        a, b = getattr(whole, name).state_dict(), getattr(resumed, name).state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert sorted(p.name for p in out.iterdir()) == [MODEL_FILE]


def test_the_result_is_a_checkpoint_with_its_provenance(tiny, images, tmp_path):
    command = ["lddgan", "train", "--seed", "2"]
    before = torch.get_rng_state()
    model = train(
        tiny, images, seed=2, out=tmp_path, epochs=1, device="cpu", command=command, log=quiet
    )
    assert torch.equal(torch.get_rng_state(), before)
    read = load_checkpoint(tmp_path / MODEL_FILE)
    assert read.preset == model.preset and read.preset.scale_factor != tiny.scale_factor
    outside = (read.encode(images).abs() > 1).float().mean().item()
    assert outside == pytest.approx(1 - tiny.codec_training.covered, abs=1e-3)
    found = read.provenance
    assert (found["command"], found["seed"], found["steps"]) == ("lddgan train --seed 2", 2, 3)
    assert found["torch"] == torch.__version__ and found["seconds"] >= 0


def test_nan_stops_with_stage_and_step(tiny, images, tmp_path, monkeypatch):
    with pytest.raises(LddganError, match=r"autoencoder failed: its loss l1 is nan at step 0"):
        train(tiny, images * math.nan, seed=0, out=tmp_path, device="cpu", log=quiet)

    def poisoned(real, fake):
        poisoned.calls += 1
        return (real * (math.nan if poisoned.calls == 3 else 1.0)).sum()

    poisoned.calls = 0
    monkeypatch.setattr(gan_module, "discriminator_loss", poisoned)
    with pytest.raises(LddganError, match=r"generator failed: its loss d is nan at step 2"):
        train(tiny, images, seed=0, out=tmp_path, epochs=1, device="cpu", log=quiet)


def test_a_state_is_neither_overwritten_nor_mixed_up(tiny, images, tmp_path, monkeypatch):
    def stop(*arguments):
        raise Interrupted

    monkeypatch.setattr(Gan, "step", stop)

    def run(**changes):
        options = {"seed": 0, "epochs": 1, "resume": True} | changes
        train(tiny, images, out=tmp_path, device="cpu", log=quiet, **options)

    with pytest.raises(Interrupted):
        run()
    with pytest.raises(BadInput, match="unfinished run; resume it"):
        run(resume=False)
    with pytest.raises(BadInput, match="other settings"):
        run(seed=1)
    Path(tmp_path / GENERATOR_STATE).write_bytes(b"cut short")
    with pytest.raises(BadInput, match="not a readable training state"):
        run()


def test_a_finished_run_is_not_resumed(tiny, images, tmp_path):
    (tmp_path / MODEL_FILE).write_bytes(b"finished")
    with pytest.raises(BadInput, match="nothing to resume"):
        train(tiny, images, seed=0, out=tmp_path, resume=True)


def test_what_cannot_be_trained_is_refused(tiny, images, tmp_path):
    with pytest.raises(BadInput, match="'lsun' cannot be trained"):
        train(get_preset("lsun"), images, seed=0, out=tmp_path)
    with pytest.raises(BadInput, match="too few"):
        train(tiny, images[:7], seed=0, out=tmp_path)
    with pytest.raises(BadInput, match="at least 1"):
        train(tiny, images, seed=0, out=tmp_path, epochs=0)


def test_plain_lines_say_losses_rate_and_time_left(tiny, images, tmp_path):
    lines = []
    train(tiny, images, seed=0, out=tmp_path, epochs=1, device="cpu", log=lines.append)
    assert lines[0].startswith("autoencoder: 3/3 steps  l1 ")
    assert lines[-1].startswith("generator: 3/3 steps  d ")
    assert all("steps/s" in line and "left" in line for line in lines)
