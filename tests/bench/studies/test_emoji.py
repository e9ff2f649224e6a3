"""The emoji model's images, from a small package of the same form."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.studies import emoji
from lddgan.checkpoint import Model, load_checkpoint, save_checkpoint
from lddgan.errors import BadInput

TAKEN = [f"{number}.png" for number in range(23)]  # in Unicode's order


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Emoji of half-transparent red squares, one level apart; the last one has a skin tone."""
    package = tmp_path / "package"
    pictures = package / "img" / "google" / "64"
    pictures.mkdir(parents=True)
    digest = hashlib.sha256()
    for number, name in enumerate([*TAKEN, "flag.png"]):
        Image.new("RGBA", (64, 64), (100 + number, 0, 0, 128)).save(pictures / name)
        if name in TAKEN:
            digest.update(name.encode() + (pictures / name).read_bytes())
    monkeypatch.setattr(emoji, "SHA256", digest.hexdigest())
    entries = [
        {"image": name, "sort_order": order, "subcategory": "face-hat" if order % 2 else "person"}
        for order, name in enumerate(TAKEN[:-1])
    ]
    entries[-1]["skin_variations"] = {"1F3FB": {"image": TAKEN[-1]}}
    entries.append({"image": "flag.png", "sort_order": 0, "subcategory": "country-flag"})
    (package / "emoji.json").write_text(json.dumps(entries[::-1]))
    for name in emoji.NOTICES:
        (package / name).write_text(name)
    return package


def test_heads_are_laid_over_white_and_every_tenth_is_held_out(
    package: Path, tmp_path: Path
) -> None:
    assert emoji.write_emoji(package, tmp_path / "out") == {"train": 21, "held-out": 2}
    held_out = sorted(path.name for path in (tmp_path / "out" / "held-out").iterdir())
    assert held_out == ["19.png", "9.png"]
    train = {path.name for path in (tmp_path / "out" / "train").iterdir()}
    assert train == {*TAKEN} - {*held_out}
    with Image.open(tmp_path / "out" / "held-out" / "9.png") as picture:
        assert picture.mode == "RGB"
        over = np.array([109 * 128 + 255 * 127, 255 * 127, 255 * 127]) / 255
        assert np.abs(np.asarray(picture) - over).max() <= 1
    assert (tmp_path / "out" / "LICENSE").read_text() == "LICENSE"


def test_other_images_are_refused(package: Path, tmp_path: Path) -> None:
    (package / "img" / "google" / "64" / "3.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"holds other images than emoji-datasource-google 16\.0\.0"):
        emoji.write_emoji(package, tmp_path / "out")
    (package / "img" / "google" / "64" / "3.png").unlink()
    with pytest.raises(BadInput, match=r"3\.png does not exist; `npm install emoji-datasource-g"):
        emoji.write_emoji(package, tmp_path / "out")


def test_a_halved_model_is_the_rounded_one(tiny_model: Model, tmp_path: Path) -> None:
    whole = save_checkpoint(tmp_path / "whole.safetensors", tiny_model)
    emoji.main(["--halve", str(whole), str(tmp_path / "half.safetensors")])
    half = load_checkpoint(tmp_path / "half.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * whole.stat().st_size
    for part in ("generator", "autoencoder"):
        expected = getattr(tiny_model, part).state_dict()
        for name, value in getattr(half, part).state_dict().items():
            assert value.dtype == expected[name].dtype
            assert (value == expected[name].half().float()).all()
