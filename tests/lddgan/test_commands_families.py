"""Training of DDGAN, WDDGAN and U-ViT as a user types it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lddgan.checkpoint import (
    digest_of,
    load_autoencoder,
    load_checkpoint,
    save_checkpoint,
    sha256_of_content,
)
from lddgan.errors import BadInput
from lddgan.preset import with_values
from lddgan.presets import get_preset
from lddgan.training.generator import Gan
from lddgan.training.inputs import open_autoencoder
from lddgan.training.log import TrainingLog
from tests import test_cli
from tests.lddgan.runs import (
    AUTOENCODER,
    MODEL,
    equal,
    generator_of,
    interrupted,
    options,
    sampled,
)
from tests.lddgan.training.support import random_autoencoder

lddgan = test_cli.lddgan  # the fixture

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")

SMALL = options(
    generator__nz=6,
    generator__z_emb_dim=8,
    generator__mapping_layers=1,
    discriminator__ngf=4,
    discriminator__t_emb_dim=8,
    training__batch=8,
    training__lr_g=0.01,
)
QUICK = ("--workers", 0, "--device", "cpu")
LEVELS = options(generator__nf=8, generator__ch_mult="[1,2]", generator__blocks=1)
DDGAN = ("--dataset", "ddgan-cifar10", "--image-size", 16, *options(discriminator__layers=2))
WDDGAN = ("--dataset", "wddgan-cifar10")
WAVELET = ("--dataset", "wddgan-celeba_256", "--image-size", 32, *options(discriminator__layers=3))
VIT = options(generator__width=24, generator__depth=3, generator__heads=3)
FAMILIES: dict[str, tuple[object, ...]] = {
    "ddgan": (*DDGAN, *LEVELS, *options(generator__attention="[8]")),
    "wddgan": (*WDDGAN, *LEVELS),
    "wddgan-wavelet": (*WAVELET, *LEVELS, *options(generator__attention="[8]")),
    "u-vit": ("--dataset", "vit-tiny", "--autoencoder", "{vit}", *VIT),
}


@pytest.fixture(scope="module")
def no_curves():
    """Losses are not drawn, which takes longer than the steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLog, "finish", lambda log: None)
        yield


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> Path:
    """A narrow autoencoder of vit-tiny."""
    preset = with_values(get_preset("vit-tiny"), {"autoencoder.ch": 32, "autoencoder.blocks": 1})
    path = tmp_path_factory.mktemp("vit") / AUTOENCODER
    return save_checkpoint(path, random_autoencoder(preset))


def test_autoencoder_of_another_preset_with_equal_latents_fits(vit: Path) -> None:
    trained = load_autoencoder(vit)
    asked = trained.preset.model_copy(update={"name": "another", "scale_factor": 1.0})
    found = open_autoencoder(vit, asked, None)
    assert (found.preset.name, found.preset.scale_factor) == ("another", 105.0)
    assert digest_of(found) == digest_of(trained)
    with pytest.raises(BadInput, match=r"was trained for vit-tiny \(.*\); you asked for vit-mid"):
        open_autoencoder(vit, get_preset("vit-mid"), None)


@pytest.mark.parametrize("family", FAMILIES)
def test_interrupted_run_ends_with_the_same_bits(
    lddgan, photos: Path, vit: Path, family: str
) -> None:
    given = [str(word).format(vit=vit) for word in FAMILIES[family]]
    command = ("train", "--data", photos, *QUICK, "--steps", 2, *given, *SMALL)
    whole = lddgan(*command, "--out", "whole")
    assert whole.code == 0, whole.err
    assert interrupted(lddgan, Gan, *command, "--out", "cut").code == 130
    resumed = lddgan(*command, "--out", "cut", "--resume")
    assert resumed.code == 0, resumed.err
    assert equal(generator_of(Path("whole")), generator_of(Path("cut")))
    images = sampled(lddgan, f"cut/{MODEL}")
    size = load_checkpoint(f"cut/{MODEL}").preset.image_size
    assert images.shape == (4, size, size, 3) and images.std() > 1
    assert Path("cut", AUTOENCODER).exists() == (family == "u-vit")


def test_model_without_autoencoder_is_kept_and_begun_with(lddgan, photos: Path) -> None:
    command = ("train", "--data", photos, *QUICK, "--steps", 2, *FAMILIES["wddgan"], *SMALL)
    assert lddgan(*command, "--out", "first", "--keep-every", 1).code == 0
    early = sampled(lddgan, "first/model-000001.safetensors")
    images = sampled(lddgan, f"first/{MODEL}")
    assert np.array_equal(images, sampled(lddgan, "first/generator.state.pt"))
    assert not np.array_equal(images, early)
    outcome = lddgan(*command, "--out", "second", "--init", f"first/{MODEL}")
    assert outcome.code == 0, outcome.err
    begun = load_checkpoint(f"second/{MODEL}").provenance["begun with"]
    assert begun == sha256_of_content({}, generator_of(Path("first")))
