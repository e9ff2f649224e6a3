"""The autoencoder's training: its losses, gradients, Table 7's regularisers, and that it trains."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import lddgan.training.autoencoder as autoencoder_training
from lddgan.checkpoint import TrainedAutoencoder, load_autoencoder
from lddgan.data.images import InMemory, digits
from lddgan.errors import BadInput, LddganError
from lddgan.networks import autoencoder as autoencoder_network
from lddgan.networks import layers
from lddgan.networks.autoencoder import KlAutoencoder, kl_divergence
from lddgan.preset import with_values
from lddgan.training.autoencoder import (
    AutoencoderGan,
    autoencoder_losses,
    measure_scale_factor,
    train_autoencoder,
)
from lddgan.training.run_folder import AUTOENCODER_FILE
from lddgan.training.state import Keeper
from tests.lddgan.training.support import ALONE, random_autoencoder, settings, tiny_preset

KINDS = ("kl", "none", "vq")
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return InMemory(digits()[:24])


def preset_of(kind, **changes):
    """A tiny preset with a regulariser and values of its training."""
    values = {f"autoencoder_training.{name}": value for name, value in changes.items()}
    values["autoencoder.kind"] = kind
    return with_values(tiny_preset(), values | ({"autoencoder.codes": 16} if kind == "vq" else {}))


def new_gan(preset, perceptual=None, **changes):
    torch.manual_seed(0)
    return AutoencoderGan(preset, settings(".", **changes), ALONE, perceptual)


@pytest.fixture
def float64(monkeypatch):
    """What computes in float32 computes in float64."""
    monkeypatch.setattr(layers.GroupNorm, "forward", torch.nn.GroupNorm.forward)
    monkeypatch.setattr(autoencoder_network, "attention", attention64)


def attention64(q, k, v):
    return (q * q.shape[-1] ** -0.5 @ k.transpose(1, 2)).softmax(dim=-1) @ v


class Distance(torch.nn.Module):
    """Stands for LPIPS: [B,3,H,W] twice -> [B]."""

    def forward(self, image, decoded):
        return (image - decoded).square().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(float64, kind):
    gan = new_gan(preset_of(kind, perceptual_weight=0.5, disc_weight=0.5), Distance())
    for network in (gan.autoencoder, gan.critic):
        network.double()
    image = digits()[:4].double()
    noise = torch.randn(4, 4, 8, 8, dtype=torch.float64)
    weight = gan.autoencoder.decoder.conv_out.weight

    def loss(adversarial):
        return torch.stack(
            list(autoencoder_losses(gan, image, noise, adversarial)[1].values())
        ).sum()

    loss(False).backward()
    fixed = gan.autoencoder.encoder.conv_in.weight  # through a quantiser, straight on: not exact
    for parameter in (weight, gan.autoencoder.post_quant_conv.weight) + (
        () if kind == "vq" else (fixed,)
    ):
        direction = torch.randn_like(parameter)
        start, h = parameter.data.clone(), 1e-6
        sides = []
        for sign in (1, -1):
            parameter.data = start + sign * h * direction
            sides.append(float(loss(False).detach()))
        parameter.data = start
        expected = float((parameter.grad * direction).sum())
        assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(expected, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_of_each_regulariser(kind):
    preset = preset_of(kind, kl_weight=0.1)
    gan = new_gan(preset)
    image, noise = digits()[:8], torch.randn(8, 4, 8, 8)
    decoded, losses = autoencoder_losses(gan, image, noise, adversarial=False)
    network = gan.autoencoder
    assert losses["l1"].item() == pytest.approx((image - decoded).abs().mean().item())
    if kind == "vq":
        latent = network.encode(image)
        codes = network.quantize(latent)
        error = (latent - codes).square().mean().item()
        assert list(losses) == ["l1", "codebook", "commitment"]
        assert losses["codebook"].item() == pytest.approx(error, rel=1e-5)
        assert losses["commitment"].item() == pytest.approx(0.25 * error, rel=1e-5)
        expected = network.decode(latent)
    elif kind == "kl":
        mean, logvar = network.moments(image).chunk(2, dim=1)
        kl = kl_divergence(mean, logvar).item() / (3 * 32 * 32)
        assert list(losses) == ["l1", "kl"] and losses["kl"].item() == pytest.approx(0.1 * kl)
        expected = network.decode(mean + (logvar / 2).exp() * noise)
    else:
        assert list(losses) == ["l1"]
        expected = network.decode(network.moments(image))
    torch.testing.assert_close(decoded, expected)


def test_vq_gradients_reach_encoder_and_codebook():
    gan = new_gan(preset_of("vq"))
    image, noise = digits()[:8], torch.zeros(8, 4, 8, 8)
    _, losses = autoencoder_losses(gan, image, noise, adversarial=False)
    first, book = gan.autoencoder.encoder.conv_in.weight, gan.autoencoder.quantize.embedding
    for name, to_encoder, to_codes in (
        ("l1", True, False),
        ("codebook", False, True),
        ("commitment", True, False),
    ):
        gradients = torch.autograd.grad(
            losses[name], (first, book.weight), retain_graph=True, allow_unused=True
        )
        assert [g is not None and bool(g.any()) for g in gradients] == [to_encoder, to_codes]


def test_adversarial_weight_is_from_last_layer_gradients():
    gan = new_gan(preset_of("none", disc_weight=0.5))
    image, noise = digits()[:8], torch.zeros(8, 4, 8, 8)
    decoded, losses = autoencoder_losses(gan, image, noise, adversarial=True)
    last = gan.autoencoder.decoder.conv_out.weight
    g = -gan.critic(decoded).mean()
    sizes = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm().item()
        for loss in ((image - decoded).abs().mean(), g)
    ]
    assert losses["g"].item() == pytest.approx(
        0.5 * sizes[0] / (sizes[1] + 1e-4) * g.item(), rel=1e-4
    )


def test_critic_begins_at_disc_start():
    gan = new_gan(preset_of("kl", disc_weight=0.5, disc_start=1))
    image = digits()[:8]
    before = gan.critic.net[0].weight.clone()
    assert list(gan.step(image, 0, 0.0)) == ["l1", "kl"]
    assert torch.equal(gan.critic.net[0].weight, before)
    assert list(gan.step(image, 1, 0.0)) == ["l1", "g", "kl", "critic"]
    assert not torch.equal(gan.critic.net[0].weight, before)
    assert gan.critic.net[0].weight.grad is not None


def test_bf16_stays_near_fp32():
    image = digits()[:8]
    losses = [
        new_gan(preset_of("kl"), **changes).step(image, 0, 0.0) for changes in ({}, {"bf16": True})
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.03) and losses[0] != losses[1]


@pytest.mark.parametrize("covered", [0.5, 0.95, 1.0])
def test_the_scale_factor_covers_a_share_of_the_latents(images, covered):
    torch.manual_seed(0)
    autoencoder = KlAutoencoder(tiny_preset()).eval()
    scale = measure_scale_factor(autoencoder, images, covered, CPU, "stop")
    inside = autoencoder.encode(images.images).abs() <= scale * (1 + 1e-5)
    assert inside.float().mean().item() == pytest.approx(covered, abs=1e-3)


class Spoilt(InMemory):
    """Images of which the last is bad and another stands in for it."""

    def read(self, index, mirrored):
        read = super().read(index, mirrored)
        return read._replace(bad=["last.png is damaged"] if len(self) - 1 in index else [])


def test_scale_factor_refuses_bad_images_unless_skipped(images):
    torch.manual_seed(0)
    autoencoder = KlAutoencoder(tiny_preset()).eval()
    spoilt = Spoilt(images.images)
    with pytest.raises(BadInput, match=r"last\.png is damaged; leave it out, or give"):
        measure_scale_factor(autoencoder, spoilt, 1.0, CPU, "stop")
    assert measure_scale_factor(autoencoder, spoilt, 1.0, CPU, "skip") > 0


def test_the_scale_factor_is_measured_on_images_from_everywhere(images, monkeypatch):
    monkeypatch.setattr(autoencoder_training, "MEASURED", 5)
    torch.manual_seed(0)
    autoencoder = KlAutoencoder(tiny_preset()).eval()
    scale = measure_scale_factor(autoencoder, images, 1.0, CPU, "stop")
    spread = images.images[[0, 4, 9, 14, 19]]  # of 24
    assert scale == pytest.approx(autoencoder.encode(spread).abs().max().item())


# Whole runs.


def test_unused_patch_discriminator_is_logged(images, tmp_path):
    said = []
    preset = preset_of("kl", disc_weight=0.5, disc_start=2)
    train_autoencoder(preset, images, settings(tmp_path / "2", steps=2, log=said.append))
    assert said[0] == (
        "no patch discriminator: it takes part from step 2 on (autoencoder_training.disc_start), "
        "and this run has 2"
    )
    said.clear()
    train_autoencoder(preset, images, settings(tmp_path / "3", steps=3, log=said.append))
    assert not [line for line in said if "no patch" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_training_reduces_the_loss_and_measures_the_scale(images, tmp_path, kind):
    preset = preset_of(kind, lr=3e-3, kl_weight=1e-6)
    pixels = images.images

    def l1(found: TrainedAutoencoder):
        decoded = found.autoencoder.decode(found.autoencoder.encode(pixels))
        return (decoded - pixels).abs().mean().item()

    trained = train_autoencoder(preset, images, settings(tmp_path, steps=12))
    assert l1(trained) < 0.5 * l1(random_autoencoder(preset))
    read = load_autoencoder(tmp_path / AUTOENCODER_FILE)
    assert read.preset == trained.preset and read.preset.autoencoder.kind == kind
    assert l1(read) == l1(trained)
    outside = (read.autoencoder.encode(pixels) / read.preset.scale_factor).abs() > 1
    assert outside.float().mean().item() == pytest.approx(0.05, abs=1e-3)
    assert (read.provenance["images"], read.provenance["steps"]) == (24, 12)


class Interrupted(Exception):
    """Stands for a power cut."""


def test_resumed_equals_uninterrupted_bit_for_bit(images, tmp_path, monkeypatch):
    preset = preset_of("kl", disc_weight=0.5, disc_start=2)
    preset = with_values(preset, {"autoencoder.dropout": 0.2, "training.flip": True})
    whole = train_autoencoder(preset, images, settings(tmp_path / "whole", seed=1))
    monkeypatch.setattr(Keeper, "is_due", True)  # after every step
    steps, step = iter(range(100)), AutoencoderGan.step

    def cut(*arguments):
        if next(steps) in (2, 4):
            raise Interrupted
        return step(*arguments)

    monkeypatch.setattr(AutoencoderGan, "step", cut)
    out = tmp_path / "cut"
    for resume in (False, True):
        with pytest.raises(Interrupted):
            train_autoencoder(preset, images, settings(out, seed=1, resume=resume))
    resumed = train_autoencoder(preset, images, settings(out, seed=1, resume=True))
    assert next(steps) == 8
    a, b = whole.autoencoder.state_dict(), resumed.autoencoder.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a) and whole.preset == resumed.preset


def test_beginning_with_an_autoencoder(images, tmp_path):
    preset = preset_of("none")
    start = random_autoencoder(preset)
    measured = train_autoencoder(preset, images, settings(tmp_path / "0", steps=0), start=start)
    a, b = start.autoencoder.state_dict(), measured.autoencoder.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    expected = measure_scale_factor(start.autoencoder, images, 0.95, CPU, "stop")
    assert measured.preset.scale_factor == expected
    trained = train_autoencoder(preset, images, settings(tmp_path / "1", steps=1), start=start)
    moved = trained.autoencoder.decoder.conv_out.weight - start.autoencoder.decoder.conv_out.weight
    assert 0 < moved.abs().max() < 1e-2  # one step of Adam from there
    with pytest.raises(BadInput, match="autoencoder to begin with has 1 tensors missing: quantize"):
        train_autoencoder(preset_of("vq"), images, settings(tmp_path / "2"), start=start)
    with pytest.raises(BadInput, match="no step at all"):
        train_autoencoder(preset, images, settings(tmp_path / "3", steps=0))


def test_the_grid_shows_images_above_their_reconstructions(images, tmp_path):
    train_autoencoder(preset_of("kl"), images, settings(tmp_path, steps=1))
    picture = np.asarray(Image.open(tmp_path / "samples" / "autoencoder-0000001.png"))
    first = ((images.images[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    assert np.array_equal(picture[2:66:2, 2:66:2], first)


def test_nan_stops(tmp_path):
    images = InMemory(digits()[:24] * math.nan)
    with pytest.raises(LddganError, match=r"autoencoder failed: its loss l1 is nan at step 0.*yet"):
        train_autoencoder(preset_of("kl"), images, settings(tmp_path))


def test_preset_without_autoencoder_training_is_refused(images, tmp_path):
    preset = tiny_preset().model_copy(update={"autoencoder_training": None})
    with pytest.raises(BadInput, match="does not say how to train its autoencoder"):
        train_autoencoder(preset, images, settings(tmp_path))
