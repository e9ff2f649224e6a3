"""What DDGAN and WDDGAN are trained on, and their losses, computed here a second time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lddgan.training.generator as gan_module
from lddgan.checkpoint import build_autoencoder
from lddgan.data.feed import Order
from lddgan.data.images import ImageFiles
from lddgan.data.open_source import open_source
from lddgan.preset import Preset, resized
from lddgan.presets import get_preset
from lddgan.training.generator import Draws, Gan, draw, generator_losses, train_generator
from lddgan.training.log import TrainingLog
from tests.lddgan.training.support import ALONE, settings

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = 4
SMALL = {
    "generator.nf": 8,
    "generator.ch_mult": (1, 2),
    "generator.blocks": 1,
    "generator.attention": (),
    "generator.nz": 6,
    "generator.mapping_layers": 1,
    "discriminator.ngf": 4,
    "discriminator.layers": 2,
    "training.batch": BATCH,
    "training.flip": False,
}


def small(dataset: str) -> Preset:
    return resized(get_preset(dataset), 16, SMALL)


# ---- what is trained on ----


def haar(image: np.ndarray) -> dict[str, np.ndarray]:
    """The bands of float64 [B,3,H,W], as FAMILIES.md defines them."""
    a, b = image[:, :, 0::2, 0::2], image[:, :, 0::2, 1::2]
    c, d = image[:, :, 1::2, 0::2], image[:, :, 1::2, 1::2]
    bands = {"LL": a + b + c + d, "LH": a - b + c - d, "HL": a + b - c - d, "HH": a - b - c + d}
    return {name: band / 2 for name, band in bands.items()}


@pytest.mark.parametrize(
    ("dataset", "bands"),
    [
        ("ddgan-cifar10", None),
        ("wddgan-cifar10", ("LL", "HL", "LH", "HH")),
        ("wddgan-celeba_256", ("LL", "LH", "HL", "HH")),
        ("wddgan-lsun", ("LL", "HL", "LH", "HH")),
    ],
)
def test_generator_is_given_pixels_or_half_the_haar_coefficients(
    dataset: str, bands: tuple[str, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 16, 16, 3), np.uint8)
    pixels[0], pixels[1] = 0, 255  # whose coefficients are the largest
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    given: list[torch.Tensor] = []

    def note(gan: Gan, x_0: torch.Tensor, *others: object) -> dict[str, torch.Tensor]:
        given.append(x_0)
        return generator_losses(gan, x_0, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(gan_module, "generator_losses", note)
    monkeypatch.setattr(TrainingLog, "finish", lambda log: None)
    preset, images = small(dataset), ImageFiles(open_source(tmp_path, "strict", None), 16)
    codec = build_autoencoder(preset, {}, {})
    train_generator(preset, codec, images, settings(tmp_path / "run", steps=1))

    order = Order(BATCH, BATCH, seed=0, flip=False).at(0)[0].numpy()
    expected = pixels[order].transpose(0, 3, 1, 2) / 127.5 - 1
    if bands is not None:
        of_band = haar(expected)
        expected = np.concatenate([of_band[band] for band in bands], axis=1) / 2
    assert np.abs(expected).max() == 1
    np.testing.assert_allclose(given[0], expected, atol=1e-6)


# ---- losses ----


def gan_with_random_weights(preset: Preset) -> Gan:
    """Networks in which no layer starts near zero."""
    torch.manual_seed(0)
    gan = Gan(preset, settings("."), ALONE)
    for network in (gan.generator, gan.discriminator):
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return gan


def share_of_signal(preset: Preset, t: np.ndarray) -> np.ndarray:
    """alpha_bar of x_t by the integral of beta(s) = beta_min + s (beta_max - beta_min)."""
    s = 1e-3 + (1 - 1e-3) * t / preset.steps
    return np.exp(
        preset.beta_min * (1e-3 - s) + (preset.beta_max - preset.beta_min) * (1e-6 - s**2) / 2
    )


def losses_of(gan: Gan, x_0: np.ndarray, draws: Draws) -> dict[str, float]:
    """The generator's losses, none of them weighted, in NumPy but for the networks."""
    preset, t = gan.preset, draws.t.numpy()[:, None, None, None]
    noise, noise_next, noise_posterior = (
        part.numpy().astype(np.float64)
        for part in (draws.noise, draws.noise_next, draws.noise_posterior)
    )
    now, later = share_of_signal(preset, t), share_of_signal(preset, t + 1)
    kept = later / now  # of x_t in x_{t+1}
    x_t = np.sqrt(now) * x_0 + np.sqrt(1 - now) * noise
    x_next = np.sqrt(kept) * x_t + np.sqrt(1 - kept) * noise_next
    with torch.no_grad():
        given = torch.from_numpy(x_next).float()
        predicted = gan.generator(given, draws.t, draws.z).numpy()
        # x_t given x_0 and x_{t+1}: two normal distributions joined by their precisions
        variance = 1 / (1 / np.maximum(1 - now, 1e-20) + kept / (1 - kept))
        of_x_0 = variance * np.sqrt(now) / np.maximum(1 - now, 1e-20)
        mean = of_x_0 * predicted + variance * np.sqrt(kept) / (1 - kept) * x_next
        fake = mean + np.sqrt(variance) * noise_posterior
        logit = gan.discriminator(torch.from_numpy(fake).float(), draws.t, given)
    return {
        "g": float(np.log1p(np.exp(-logit.numpy())).mean()),
        "l1": float(np.abs(x_0 - predicted).mean()),
    }


@pytest.mark.parametrize("progress", [0.0, 0.9])
@pytest.mark.parametrize(
    ("dataset", "names"), [("ddgan-cifar10", ["g"]), ("wddgan-cifar10", ["g", "l1"])]
)
def test_losses_are_adversarial_and_wddgan_adds_unweighted_l1(
    dataset: str, names: list[str], progress: float
) -> None:
    preset = small(dataset)
    gan = gan_with_random_weights(preset)
    draws = draw(preset, BATCH, torch.device("cpu"))._replace(t=torch.arange(BATCH))
    x_0 = torch.rand(BATCH, *preset.latent_shape) * 2 - 1
    losses = generator_losses(gan, x_0, draws, progress)
    found = {name: loss.item() for name, loss in losses.items()}
    expected = losses_of(gan, x_0.numpy().astype(np.float64), draws)
    assert found == pytest.approx({name: expected[name] for name in names}, rel=1e-4)
