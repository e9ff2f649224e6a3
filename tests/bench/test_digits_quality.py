"""The shipped digits model meets its bar, and the measure can tell."""

from __future__ import annotations

import os

import numpy as np
import pytest

from bench.digits_quality import quality, shipped_sampler
from export.bundle import DIGITS, open_bundle
from lddgan.data import digits

LARGEST_BYTES = 8_000_000  # of the shipped checkpoint and bundle together


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Every scan as a uint8 image [1797,32,32,3]."""
    images = (digits() + 1) * 127.5
    return images.round().byte().permute(0, 2, 3, 1).numpy()


def test_the_shipped_model_meets_its_bar() -> None:
    found = quality(shipped_sampler(1000, 0))
    assert found.samples == 1000
    assert found.sure >= 0.80
    assert min(found.digits) >= 0.04
    assert found.copies < 0.01


def test_scans_are_copies_of_themselves_and_sure(real: np.ndarray) -> None:
    found = quality(real)
    assert found.copies == 1.0
    assert found.sure > 0.9
    assert found.sure_real == pytest.approx(0.88, abs=0.005)
    assert found.digits == pytest.approx([0.1] * 10, abs=0.01)


def test_noise_and_means_are_not_sure(real: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    assert quality(noise).sure < 0.3
    pairs = (real[:200].astype(int) + real[200:400]) // 2
    mixed = quality(pairs.astype(np.uint8))
    assert mixed.sure < 0.5
    assert mixed.copies == 0.0


def test_what_ships_is_small_and_trained() -> None:
    bundle = open_bundle(DIGITS)
    assert sum(entry.stat().st_size for entry in os.scandir(DIGITS)) < LARGEST_BYTES
    assert not bundle.has_random_weights
    assert bundle.manifest.provenance["command"].startswith("lddgan train --dataset digits")
    for name in bundle.manifest.files:
        bundle.file(name)
