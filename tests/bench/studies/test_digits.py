"""The shipped digits model meets its bar, and the measure can tell."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bench.studies.digits import DigitsQuality, main, quality
from engine.registry import open_engine
from export import exporter
from export.bundle import DIGITS, open_bundle
from export.exporter import export_bundle, model_to_export
from lddgan.data.images import digits
from tests.export.test_int8 import copying_from

LARGEST_BYTES = 8_000_000  # of the shipped checkpoint and bundle together


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Every scan as a uint8 image [1797,32,32,3]."""
    images = (digits() + 1) * 127.5
    return images.round().byte().permute(0, 2, 3, 1).numpy()


def meets_the_bar(found: DigitsQuality) -> bool:
    return found.sure >= 0.80 and min(found.digits) >= 0.04 and found.copies < 0.01


@pytest.mark.full
def test_the_shipped_model_meets_its_bar() -> None:
    found = quality(open_engine(DIGITS).sample(1000))
    assert found.samples == 1000
    assert meets_the_bar(found), found


@pytest.mark.full
def test_both_graphs_in_8_bits_meet_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "export_graphs", copying_from(DIGITS))
    model, checkpoint = model_to_export("digits", None)
    folder = tmp_path / "digits"
    measured = export_bundle(model, folder, ("int8",), checkpoint=checkpoint)["int8"]
    assert measured.chain_psnr > 33 and measured.int8_both_psnr is None
    found = quality(open_engine(folder, "ort", "int8").sample(500))
    assert meets_the_bar(found), found


def test_what_made_the_images_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--bundle", str(DIGITS), "--engine", "ort", "--precision", "fp32", "--count", "10"])
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("ort fp32 on CPU") and second.split() == ["samples", "10"]
    with pytest.raises(SystemExit, match=r"^error: a checkpoint runs in PyTorch: leave out"):
        main(["model.safetensors", "--precision", "int8"])
    with pytest.raises(SystemExit, match=r"^error: "):
        main(["--bundle", str(DIGITS), "--precision", "int8"])


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
