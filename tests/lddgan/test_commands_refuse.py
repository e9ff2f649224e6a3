"""What the training commands refuse, in one sentence each."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from lddgan.checkpoint import save_checkpoint
from lddgan.files import sole_writer
from lddgan.preset import with_values
from lddgan.presets import get_preset
from lddgan.training.state import load_state
from tests import test_cli
from tests.lddgan.data.support import encoded, lmdb_with, picture
from tests.lddgan.runs import (
    AUTOENCODER,
    CIFAR,
    FOR_AUTOENCODER,
    FOR_TRAIN,
    MODEL,
    NO_LPIPS,
    OF_DIGITS,
    RUN,
    options,
)
from tests.lddgan.training.support import random_autoencoder
from tests.needs import needs
from tests.test_cli import refused

lddgan = test_cli.lddgan  # the fixture

pytestmark = pytest.mark.usefixtures("one_thread")


LSUN = (
    *("train-autoencoder", "--dataset", "lsun", "--steps", 1, *NO_LPIPS),
    *options(autoencoder__ch=32, autoencoder_training__batch=8),
)
WDDGAN = ("train", "--dataset", "wddgan-cifar10", "--data", "{photos}")
NO_AUTOENCODER = ("wddgan-cifar10 takes no autoencoder", "'haar', which has no weights")

IMPORT = "import", "--dataset", "lsun", "--generator", "g.pth", "--autoencoder", "ae.safetensors"
REFUSED: list[tuple[tuple, tuple[str, ...]]] = [
    # data
    (LSUN, ("no images of lsun", "--data")),
    (("train", "--dataset", "lsun", "--autoencoder", "{lsun}"), ("no images of lsun",)),
    ((*FOR_AUTOENCODER, "--data", "none"), ("none does not exist",)),
    ((*FOR_AUTOENCODER, "--data", "empty"), ("empty holds no images (.apng",)),
    ((*FOR_TRAIN, "--data", "empty"), ("empty holds no images (.apng",)),
    (
        (*FOR_AUTOENCODER, "--data", "{photos}", *options(autoencoder_training__batch=20)),
        ("16 images are too few: one batch takes 20",),
    ),
    (
        (*FOR_TRAIN, *options(training__batch=32)),
        ("16 images are too few: one batch takes 32",),
    ),
    (WDDGAN, ("16 images are too few: one batch takes 256",)),
    (WDDGAN[:3], ("no images of wddgan-cifar10 of 32x32; give --data",)),
    (
        (*LSUN, "--data", "{photos}"),
        ("is 32x32, smaller than 256x256",),
    ),
    ((*OF_DIGITS, "--latents", "none"), ("no latents at none", "`lddgan dataset encode`")),
    ((*FOR_AUTOENCODER, "--lmdb-size", 32), ("--lmdb-size and --convert are of --data",)),
    ((*FOR_AUTOENCODER, "--data", "{photos}", "--lmdb-size", 32), ("is no LMDB; leave out",)),
    (
        (*OF_DIGITS, "--latents", "none", "--lmdb-size", 32),
        ("--latents are encoded: `dataset encode` takes --lmdb-size",),
    ),
    # the autoencoder
    ((*WDDGAN, "--autoencoder", "x"), (*NO_AUTOENCODER, "leave out --autoencoder")),
    (
        (*WDDGAN, "--key", "ema", "--latents", "x"),
        (*NO_AUTOENCODER, "leave out --key and --latents"),
    ),
    (
        ("train-autoencoder", *WDDGAN[1:], "--perceptual-weight", 0),
        (*NO_AUTOENCODER, "`lddgan train --dataset wddgan-cifar10 --data "),
    ),
    (
        ("dataset", "encode", "{photos}", "--dataset", "wddgan-cifar10", "--out", "runs"),
        (*NO_AUTOENCODER, "`lddgan train --dataset wddgan-cifar10 --data "),
    ),
    (
        ("dataset", "encode", "{photos}", "--dataset", "digits", "--out", "runs"),
        ("give the autoencoder of the latents (--autoencoder)",),
    ),
    (("train", "--dataset", "digits"), ("--autoencoder", "train-autoencoder --dataset digits")),
    (("train", "--dataset", "imagenet"), ("imagenet", "cifar10, celeba_256, lsun, digits")),
    (
        ("train", "--dataset", "cifar10", "--autoencoder", "{files}/" + AUTOENCODER),
        (f"{AUTOENCODER} was trained for digits (latent_size 8); you asked for cifar10",),
    ),
    (
        ("train", "--dataset", "celeba_256", "--autoencoder", "{files}/" + MODEL),
        (f"{MODEL} was trained for digits (image_size 32); you asked for celeba_256",),
    ),
    ((*CIFAR, *NO_LPIPS, "--data", "{photos}", "--autoencoder", "{lsun}"), ("for lsun",)),
    (("train", "--dataset", "digits", "--autoencoder", "none.safetensors"), ("not exist",)),
    (("train", "--dataset", "digits", "--autoencoder", "none.ckpt"), ("none.ckpt",)),
    (("train", "--dataset", "digits", "--autoencoder", "damaged.ckpt"), ("damaged.ckpt",)),
    (
        ("train", "--dataset", "digits", "--autoencoder", "damaged.safetensors"),
        ("is not a whole safetensors file",),
    ),
    (
        ("export", "--checkpoint", "{files}/" + AUTOENCODER),
        ("is an autoencoder alone", "`lddgan train --dataset digits --autoencoder "),
    ),
    # the run
    ((*FOR_TRAIN, "--resume"), ("generator.state.pt does not exist", "nothing to resume")),
    (
        ("train", "--dataset", "digits", "--autoencoder", "{files}/" + MODEL, "--key", "vae"),
        ("no file has the key vae; there are none",),
    ),
    (
        (*IMPORT, "--out", "model"),
        ("--out model is no .safetensors file", "model.safetensors"),
    ),
    ((*IMPORT, "--out", "{photos}"), ("is no .safetensors file",)),
    ((*IMPORT, "--out", "ae.safetensors"), ("--out ae.safetensors is to be read",)),
    ((*FOR_AUTOENCODER, "--resume"), ("autoencoder.state.pt does not exist", "nothing to resume")),
    ((*FOR_TRAIN, "--epochs", 1), ("epochs or steps, not both",)),
    ((*FOR_AUTOENCODER, "--epochs", 1), ("epochs or steps, not both",)),
    ((*FOR_AUTOENCODER, "--steps", 0), ("no step at all",)),
    ((*FOR_TRAIN, "--seed", -1), ("seed is -1",)),
    ((*FOR_TRAIN, "--accumulate", 4), ("a batch of 8 cannot be cut into 4 parts",)),
    # values
    ((*FOR_TRAIN, "--loss", "adversarial", "--delta", 6), ("delta belongs to", "weighted")),
    ((*FOR_TRAIN, "--loss", "reconstruction", "--delta", 6), ("delta belongs to",)),
    ((*FOR_TRAIN, "--set", "generator.widht=3"), ("'generator.widht'", "generator.nf, ")),
    ((*FOR_AUTOENCODER, "--set", "widht=3"), ("'widht'", "autoencoder.ch, ")),
    (
        (*FOR_AUTOENCODER, "--set", "autoencoder"),
        ("'autoencoder' is no setting; write generator.nf=32",),
    ),
    ((*FOR_TRAIN, "--set", "generator.nf=wide"), ("generator.nf", "valid integer")),
    ((*CIFAR, "--image-size", 33), ("image_size 33 is no multiple of 2,",)),
    ((*CIFAR, "--image-size", 4), ("latent_size 2 is no multiple of 4",)),
    ((*FOR_TRAIN, "--image-size", 64), ("autoencoder decides", "digits --image-size 64` trains")),
    ((*WDDGAN, "--image-size", 33), ("image_size 33 is no multiple of 2,",)),
    ((*WDDGAN, "--image-size", 12), ("choose an image_size that 8 divides, or fewer levels",)),
    # a checkpoint that is looked at
    (("sample", "--checkpoint", "{files}/" + MODEL, "--engine", "ort"), ("lddgan export",)),
    (("sample", "--checkpoint", "{files}/" + MODEL, "--precision", "fp16"), ("fp32",)),
    (
        ("sample", "--checkpoint", "{files}/" + MODEL, "--dataset", "digits"),
        ("leave out --dataset and --bundle",),
    ),
    (
        ("sample", "--checkpoint", "{files}/" + MODEL, "--bundle", "x"),
        ("leave out --dataset and --bundle",),
    ),
    (("sample", "--checkpoint", "{files}/" + AUTOENCODER), ("is an autoencoder alone",)),
    (("sample", "--checkpoint", "none.state.pt"), ("none.state.pt",)),
    (("sample", "--checkpoint", "damaged.state.pt"), ("damaged.state.pt is not a readable",)),
    (("sample", "--checkpoint", "none.safetensors"), ("none.safetensors does not exist",)),
]


@pytest.mark.parametrize(("args", "words"), REFUSED, ids=[words[0] for _, words in REFUSED])
def test_unusable_input_is_one_sentence(
    lddgan, photos: Path, files: Path, lsun: Path, args: tuple, words: tuple[str, ...]
) -> None:
    Path("empty").mkdir()
    for suffix in ("safetensors", "ckpt", "state.pt"):
        Path(f"damaged.{suffix}").write_bytes(b"hello")
    given = [str(arg).format(photos=photos, files=files, lsun=lsun) for arg in args]
    refused(lddgan(*given), *words)
    assert not Path("runs").exists() or not [*Path().rglob(AUTOENCODER), *Path().rglob(MODEL)]


@pytest.mark.parametrize(
    "command",
    [
        ("dataset", "check", "faces"),
        ("dataset", "encode", "faces", *OF_DIGITS[1:], "--out", "kept"),
        (*FOR_AUTOENCODER, "--data", "faces"),
        (*OF_DIGITS, "--steps", 1, "--data", "faces"),
    ],
)
def test_all_commands_take_one_size_of_an_lmdb(lddgan, files: Path, command: tuple) -> None:
    entries = {f"{side}-{n}": encoded(picture(n, side, side)) for side in (8, 24) for n in range(9)}
    lmdb_with(Path("faces"), entries)
    given = [str(word).format(files=files) for word in command]
    refused(lddgan(*given), "several sizes (8, 24); choose by --lmdb-size")
    refused(lddgan(*given, "--lmdb-size", 32), "no images of --lmdb-size 32, but of 8, 24")


@pytest.fixture(scope="module")
def lsun(tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """A narrow autoencoder of lsun."""
    preset = with_values(get_preset("lsun"), {"autoencoder.ch": 32, "autoencoder.blocks": 1})
    return save_checkpoint(
        tmp_path_factory.mktemp("lsun") / AUTOENCODER, random_autoencoder(preset)
    )


@pytest.mark.parametrize(
    "value",
    [
        "generator.nf=0",
        "generator.nf=7",  # of 14 channels no third can be normalised
        "generator.nz=0",
        "discriminator.ngf=0",
        "discriminator.t_emb_dim=2",
        "latent_channels=3",  # where the autoencoder has 4
        "training.batch=0",
        "training.batch=6",  # no whole groups of the minibatch deviation
        "training.r1_every=0",
        "training.lr_g=-1",
        "training.betas=[1,1]",
        "training.ema_decay=2",
        "autoencoder.ch=0",
        "autoencoder.ch=16",  # the networks normalise 32 groups
        "autoencoder.dropout=2",
        "autoencoder_training.batch=0",
        "autoencoder_training.lr=-1",
        "autoencoder_training.covered=0",
        "autoencoder_training.covered=1.5",
    ],
)
def test_unusable_values_are_one_sentence(lddgan, photos: Path, files: Path, value: str) -> None:
    command = FOR_AUTOENCODER if value.startswith("autoencoder") else FOR_TRAIN
    given = [str(arg).format(photos=photos, files=files) for arg in command]
    refused(lddgan(*given, "--data", photos, "--set", value))


def test_the_digits_have_one_size(lddgan) -> None:
    refused(lddgan(*FOR_AUTOENCODER, "--image-size", 64), "64", "--data")


def test_images_too_small_for_the_patch_discriminator(lddgan, photos: Path) -> None:
    values = options(autoencoder_training__batch=8, autoencoder_training__disc_start=0)
    small = (*CIFAR, *NO_LPIPS, *values, "--data", photos, "--image-size", 16)
    refused(lddgan(*small), "16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_refused(lddgan, photos: Path) -> None:
    outcome = lddgan(*FOR_AUTOENCODER, "--data", photos, "--device", "cuda")
    refused(outcome, "finds no CUDA GPU here", "--device")


@pytest.mark.parametrize(
    "args",
    [("--loss", "l2"), ("--workers", -1), ("--accumulate", 0), ("--steps", -1), ("--epochs", 0)],
)
def test_unknown_choice_is_a_usage_error(lddgan, args) -> None:
    outcome = lddgan("train", "--dataset", "digits", *args)
    assert outcome.code == 2 and "Usage: lddgan train" in outcome.err


@needs("lpips")
def test_vgg_weights_that_are_not_there(lddgan) -> None:
    asked = ("--vgg", "none.pth", "--perceptual-weight", 1)
    refused(lddgan(*FOR_AUTOENCODER, *asked), "none.pth", "--vgg")


@needs("lpips")
def test_lpips_without_its_weights_says_where_they_are(lddgan, photos, monkeypatch) -> None:
    def offline(*args: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", "hub")
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    outcome = lddgan(*CIFAR, "--data", photos, *options(autoencoder_training__batch=8))
    refused(outcome, "VGG-16", "no network", "--vgg", "--perceptual-weight 0", code=1)
    assert not list(Path().rglob(AUTOENCODER))


def test_a_folder_that_cannot_be_written_is_one_sentence(lddgan, photos: Path) -> None:
    Path("taken").write_text("a file")
    refused(
        lddgan(*FOR_AUTOENCODER, "--data", photos, "--out", "taken"), "cannot write taken", code=1
    )
    assert Path("taken").read_text() == "a file"


def test_a_full_disk_is_one_sentence_and_keeps_the_state(lddgan, photos: Path) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(AUTOENCODER):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", full)
        outcome = lddgan(*FOR_AUTOENCODER, "--data", photos)
    refused(outcome, f"cannot write {RUN / AUTOENCODER}: No space left", code=1)
    assert load_state(RUN / "autoencoder.state.pt")["step"] == 1
    assert lddgan(*FOR_AUTOENCODER, "--data", photos, "--resume").code == 0


# ---- one writer ----

ENCODE = (
    "dataset",
    "encode",
    "{photos}",
    "--dataset",
    "digits",
    "--autoencoder",
    f"{{files}}/{AUTOENCODER}",
)


@pytest.mark.parametrize(
    ("command", "beside"),
    [
        (FOR_AUTOENCODER, False),
        (FOR_TRAIN, False),
        ((*FOR_TRAIN, "--resume"), False),
        (ENCODE, True),
    ],
)
def test_second_writer_of_a_folder_is_refused(
    lddgan, files: Path, photos: Path, command: tuple, beside: bool
) -> None:
    words = [str(word).format(files=files, photos=photos) for word in command]
    Path("runs").mkdir()
    Path("link").symlink_to("runs/one")
    with sole_writer(Path("runs", "one"), beside=beside):
        outcome = lddgan(*words, "--out", "link")
        refused(outcome, f"link is being written by process {os.getpid()} on ", code=1)
    assert sorted(path.name for path in Path().rglob("*")) == ["link", "runs"]
