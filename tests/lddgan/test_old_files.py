"""Files that version 0.1 wrote (commit 62b63f3) open as what they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from export.bundle import CHECKPOINT, MANIFEST, open_bundle
from lddgan.checkpoint import load_checkpoint
from lddgan.diffusion import sample
from lddgan.errors import BadInput
from lddgan.noise import draw
from lddgan.preset import Preset, with_values
from lddgan.presets import get_preset
from lddgan.training.state import check_run
from tests.published_files import REFERENCE, recorded

OLD = REFERENCE / "old-checkpoint.safetensors"
CHANGES = {
    "image_size": 8,
    "latent_channels": 3,
    "latent_size": 8,
    "steps": 2,
    "scale_factor": 2.0,
    "generator.nf": 4,
    "generator.ch_mult": [1],
    "generator.nz": 4,
    "generator.mapping_layers": 0,
    "generator.z_emb_dim": 4,
    "autoencoder.ch_mult": [1],
    "autoencoder.tanh": True,
    "discriminator.ngf": 4,
    "discriminator.layers": 1,
    "discriminator.t_emb_dim": 8,
}
EXPECTED = with_values(get_preset("digits"), CHANGES).model_copy(update={"name": "old"})


def in_old_words(preset: Preset) -> dict[str, object]:
    """A preset as version 0.1 wrote it."""
    values = preset.model_dump(mode="json")
    del values["generator"]["kind"]
    values["autoencoder"].setdefault("codes", 0)
    return {name.replace("autoencoder", "codec"): value for name, value in values.items()}


@torch.no_grad()
def test_old_checkpoint_gives_its_recorded_output() -> None:
    model, case = load_checkpoint(OLD), recorded("old-checkpoint")
    assert model.preset == EXPECTED and model.has_random_weights
    noise = [torch.from_numpy(array) for array in draw(model.preset, 0, 2, seed=0)]
    x_0 = sample(model.generator, model.preset, *noise)
    torch.testing.assert_close(x_0, case["x_0"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(x_0), case["image"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode(case["image"]), case["latent"], atol=1e-5, rtol=1e-5)


def test_old_bundle_opens(tmp_path: Path) -> None:
    shutil.copyfile(REFERENCE / "old-manifest.json", tmp_path / MANIFEST)
    shutil.copyfile(OLD, tmp_path / CHECKPOINT)
    bundle = open_bundle(tmp_path)
    assert bundle.preset == EXPECTED and bundle.precisions == ()
    assert load_checkpoint(bundle.file(CHECKPOINT)).preset == bundle.preset


def test_old_json_of_every_preset_is_that_preset() -> None:
    for name in ("cifar10", "celeba_256", "lsun", "digits"):  # version 0.1 had no more
        for kind in ("kl", "vq", "none"):
            own = with_values(get_preset(name), {"autoencoder.kind": kind})
            assert Preset.model_validate_json(json.dumps(in_old_words(own))) == own


def test_old_training_state_is_of_the_same_run() -> None:
    found = {"seed": "0", "preset": json.dumps(in_old_words(EXPECTED))}
    check_run(OLD, found, {"seed": "0", "preset": EXPECTED.model_dump_json()})
    with pytest.raises(BadInput, match="another dataset: digits, it was old, another image_size"):
        check_run(OLD, found, {"seed": "0", "preset": get_preset("digits").model_dump_json()})


def test_shipped_digits_are_old_files_that_open() -> None:
    folder = Path(__file__).parents[2] / "lddgan" / "assets" / "digits"
    preset = open_bundle(folder).preset
    assert "codec" in json.loads((folder / MANIFEST).read_text())["preset"]
    assert load_checkpoint(folder / CHECKPOINT).preset == preset
    assert np.isclose(preset.scale_factor, 4.1131659) and preset.name == "digits"
    assert not preset.training.flip  # version 0.1 mirrored no images
