"""Training as a user types it: whole runs, interrupted ones, bad images."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.bundle import DIGITS
from lddgan.checkpoint import load_autoencoder, load_checkpoint, sha256_of_content
from lddgan.commands import train_command
from lddgan.training.autoencoder import AutoencoderGan
from lddgan.training.generator import Gan
from tests import test_cli
from tests.lddgan.runs import (
    AUTOENCODER,
    MODEL,
    RUN,
    TINY,
    equal,
    generator_of,
    interrupted,
    options,
    sampled,
)
from tests.test_cli import refused

lddgan = test_cli.lddgan  # the fixture

pytestmark = pytest.mark.usefixtures("one_thread")


def test_hint_repeats_each_key_and_leaves_out_what_is_not_given() -> None:
    given = {"autoencoder": "a b.ckpt", "key": ["ema", "vae"], "lmdb-size": None}
    assert train_command(given) == "`lddgan train --autoencoder 'a b.ckpt' --key ema --key vae`"


# ---- whole runs ----


def test_digits_from_nothing_to_images(lddgan) -> None:
    first = lddgan("train-autoencoder", "--dataset", "digits", "--steps", 2, *TINY)
    assert first.code == 0, first.err
    assert f"{RUN / AUTOENCODER}: trained; its scale factor is " in first.out
    assert f"next: `lddgan train --dataset digits --autoencoder {RUN / AUTOENCODER}" in first.out
    second = lddgan("train", "--dataset", "digits", "--steps", 2)
    assert second.code == 0, second.err
    assert second.out.splitlines()[0] == f"using {RUN / AUTOENCODER}"
    assert f"{RUN / MODEL}: trained; next: `lddgan export --checkpoint" in second.out
    images = sampled(lddgan, RUN / MODEL)
    assert images.shape == (4, 32, 32, 3) and images.dtype == np.uint8 and images.std() > 0
    for stage in ("autoencoder", "generator"):
        lines = (RUN / f"{stage}.losses.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 1]
    told = "is finished after 2 steps; `--resume --steps MORE` goes on to MORE steps in all"
    refused(lddgan("train", "--dataset", "digits"), f"{RUN / MODEL} {told}")
    refused(lddgan("train-autoencoder", "--dataset", "digits"), f"{RUN / AUTOENCODER} {told}")


@pytest.mark.full
def test_the_shipped_model_gives_its_autoencoder(lddgan) -> None:
    given = ("--dataset", "digits", "--autoencoder", DIGITS / MODEL, "--steps", 1)
    small = options(generator__nf=8, training__batch=4, discriminator__ngf=4)
    done = lddgan("train", *given, *small)
    assert done.code == 0, done.err
    assert load_checkpoint(RUN / MODEL).preset.scale_factor == pytest.approx(4.1131659)


def test_interrupted_run_can_be_sampled_and_resumed(lddgan, photos: Path, files: Path) -> None:
    encoder = ("--autoencoder", files / AUTOENCODER)
    common = ("train", "--dataset", "digits", "--data", photos, *encoder, "--steps", 3)
    lddgan(*common, "--out", "whole")
    outcome = interrupted(lddgan, Gan, *common, "--out", "cut")
    assert outcome.code == 130, outcome.err
    assert outcome.err.splitlines()[-1] == "stopped after step 1 of 3; go on with --resume"
    state = Path("cut/generator.state.pt")
    outcome = lddgan("sample", "--checkpoint", state, "--num", 2, "--out", "early.npz")
    assert outcome.code == 0 and f"{state}: unfinished, after 1 step" in outcome.err
    early = np.load("early.npz")["images"]

    again = (*common, "--out", "cut", "--resume")
    refused(lddgan(*common, "--out", "cut"), "unfinished run; go on with --resume")
    refused(lddgan(*again, "--loss", "reconstruction"), "another training.delta: null, it was 1.0;")
    done = lddgan(*again)
    export = "`lddgan export --checkpoint cut/model.safetensors --out exports/cut`"
    assert done.code == 0 and f"{export}, then `lddgan sample --bundle exports/cut`" in done.out

    assert equal(*(generator_of(Path(name)) for name in ("whole", "cut")))
    final = sampled(lddgan, "cut/" + MODEL)
    assert not np.array_equal(final[:2], early) and np.array_equal(final, sampled(lddgan, state))


def test_interrupted_autoencoder_can_be_resumed(lddgan, photos: Path) -> None:
    common = ("train-autoencoder", "--dataset", "digits", "--data", photos, "--steps", 3, *TINY)
    lddgan(*common, "--out", "whole")
    outcome = interrupted(lddgan, AutoencoderGan, *common, "--out", "cut")
    assert outcome.code == 130 and "stopped after step 1 of 3" in outcome.err
    state = Path("cut/autoencoder.state.pt")
    refused(lddgan("sample", "--checkpoint", state), "the state of an autoencoder")
    again = (*common, "--out", "cut", "--resume")
    refused(lddgan(*again, "--regulariser", "none"), "another autoencoder.kind: none, it was kl;")
    assert lddgan(*again).code == 0
    whole, resumed = (load_autoencoder(Path(name) / AUTOENCODER) for name in ("whole", "cut"))
    assert whole.preset == resumed.preset
    assert equal(whole.autoencoder.state_dict(), resumed.autoencoder.state_dict())


def test_train_begins_with_a_model_and_keeps_snapshots(lddgan, photos: Path, files: Path) -> None:
    Path("own").mkdir()
    shutil.copyfile(files / AUTOENCODER, f"own/{AUTOENCODER}")
    asked = ("train", "--dataset", "digits", "--data", photos, "--out", "own", "--steps", 2)
    outcome = lddgan(*asked, "--init", files / MODEL, "--keep-every", 1)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0] == f"using own/{AUTOENCODER}"
    digest = sha256_of_content({}, generator_of(files))
    assert load_checkpoint(f"own/{MODEL}").provenance["begun with"] == digest
    snapshot = "own/model-000001.safetensors"
    early = lddgan("sample", "--checkpoint", snapshot, "--num", 1, "--out", "early.png")
    assert f"{snapshot}: unfinished, after 1 steps" in early.err
    again = (*asked, "--resume", "--init", files / MODEL)
    refused(lddgan(*again), "--init begins a run and --resume continues one")
    wider = (*asked, "--set", "generator.nf=16", "--init", files / MODEL)
    Path(f"own/{MODEL}").unlink()
    Path("own/generator.state.pt").unlink()
    refused(lddgan(*wider), "the generator to begin with has", "misshapen")


@pytest.mark.full
def test_a_trained_model_is_exported(lddgan, photos: Path, files: Path) -> None:
    encoder = ("--autoencoder", files / AUTOENCODER)
    trained = lddgan("train", "--dataset", "digits", "--data", photos, *encoder, "--steps", 2)
    assert trained.code == 0, trained.err
    refused(lddgan("export", "--dataset", "lsun", "--checkpoint", RUN / MODEL), "digits model")
    outcome = lddgan("export", "--checkpoint", RUN / MODEL, "--precision", "fp32")
    assert outcome.code == 0 and "fp32: agrees with PyTorch" in outcome.out, outcome.err
    made = lddgan("sample", "--bundle", "exports/digits", "--num", 4, "--out", "y.npz")
    assert made.code == 0 and "random weights" not in made.err
    exported = np.load("y.npz")["images"].astype(int)
    assert np.abs(sampled(lddgan, RUN / MODEL).astype(int) - exported).max() <= 1


def losses(folder: str) -> list[dict[str, float]]:
    lines = (Path(folder) / "generator.losses.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_latents_are_encoded_once_and_trained_on(lddgan, photos: Path, files: Path) -> None:
    encoder = ("--dataset", "digits", "--autoencoder", files / AUTOENCODER)
    outcome = lddgan("dataset", "encode", photos, *encoder, "--out", "latents")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0] == "latents: the latents of 16 images"
    assert "--latents latents`" in outcome.out.splitlines()[1]
    train = ("train", *encoder, "--steps", 2)
    for source, out in (("--latents", "stored"), ("--data", "read")):
        given = "latents" if out == "stored" else photos
        assert lddgan(*train, source, given, "--out", out).code == 0
    for a, b in zip(losses("stored"), losses("read"), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)

    refused(lddgan(*train, "--data", photos, "--latents", "latents"), "--data and --latents")
    other = ("--autoencoder", files / "other.safetensors", "--latents", "latents")
    refused(lddgan("train", "--dataset", "digits", *other), "latents of another autoencoder")
    mirrored = (*train, "--set", "training.flip=true", "--latents")
    refused(lddgan(*mirrored, "latents"), "no mirrored images", "--flip")
    refused(lddgan("dataset", "encode", photos, *encoder, "--out", "latents"), "holds other files")
    lddgan("dataset", "encode", photos, *encoder, "--out", "both", "--flip")
    assert lddgan(*mirrored, "both", "--out", "mirrored").code == 0
    for name in ("none", photos):
        refused(lddgan(*train, "--latents", name), str(name), "latents")


# ---- bad images ----


def saved(kind: str, mode: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) if mode == "I;16" else pixels)
    file = io.BytesIO()
    (image if mode == "I;16" else image.convert(mode)).save(file, kind)
    return file.getvalue()


BAD = {
    "is empty": b"",
    "is damaged": saved("PNG", "RGB")[:900],
    "has the mode CMYK, not RGB": saved("JPEG", "CMYK"),
    "has the mode I;16, not RGB": saved("PNG", "I;16"),
    "has the mode P, not RGB": saved("PNG", "P"),
}


def with_bad(photos: Path, folder: Path) -> dict[str, str]:
    """15 good images and those of BAD between them; what is said of these, by name."""
    folder.mkdir()
    for path in sorted(photos.iterdir())[:15]:
        (folder / path.name).write_bytes(path.read_bytes())
    for number, data in enumerate(BAD.values()):
        (folder / f"{3 * number:02d}b.png").write_bytes(data)
    return {f"{folder}/{3 * number:02d}b.png": said for number, said in enumerate(BAD)}


@pytest.mark.parametrize("said", BAD)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_stops_the_training(lddgan, photos: Path, said: str, workers: int) -> None:
    Path("images").mkdir()
    for path in sorted(photos.iterdir())[:7]:
        (Path("images") / path.name).write_bytes(path.read_bytes())
    Path("images/bad.png").write_bytes(BAD[said])
    common = ("--dataset", "digits", "--data", "images", "--steps", 1, "--workers", workers)
    outcome = lddgan("train-autoencoder", *common, *TINY)
    refused(outcome, f"images/bad.png {said}", "--on-bad skip")
    assert not (RUN / AUTOENCODER).exists()


def test_bad_images_are_skipped_told_and_counted(lddgan, photos: Path, files: Path) -> None:
    bad = with_bad(photos, Path("images"))
    told = {f"skipped: {name} {said}" for name, said in bad.items()}
    common = ("--dataset", "digits", "--data", "images", "--on-bad", "skip", "--steps", 10)
    batch = options(autoencoder_training__batch=4, training__batch=4)  # two epochs of all 20
    for command, stage in (("train-autoencoder", "autoencoder"), ("train", "generator")):
        given = TINY if stage == "autoencoder" else ()
        outcome = lddgan(command, *common, *given, *batch)
        assert outcome.code == 0, outcome.err
        lines = [line for line in outcome.err.splitlines() if line.startswith("skipped: ")]
        assert len(lines) == 5
        assert all(any(line.startswith(start) for line in lines) for start in told), lines
        assert f"{stage}: 5 bad images were skipped" in outcome.err.splitlines()
    encoder = ("--dataset", "digits", "--autoencoder", files / AUTOENCODER)
    encode = ("dataset", "encode", "images", *encoder, "--out", "latents")
    refused(lddgan(*encode), "00b.png is empty")
    outcome = lddgan(*encode, "--on-bad", "skip")
    assert outcome.code == 0 and "latents: the latents of 15 images" in outcome.out
    outcome = lddgan(*encode[:-1], "converted", "--on-bad", "skip", "--convert", "rgb")
    assert outcome.code == 0 and "converted: the latents of 18 images" in outcome.out
    assert "images: 20 images" in outcome.err.splitlines()
