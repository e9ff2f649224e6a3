"""Training as a user types it: whole runs, what is refused and how, signals, several processes."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from lddgan.checkpoint import load_autoencoder, load_checkpoint, random_model, save_checkpoint
from lddgan.preset import with_values
from lddgan.presets import get_preset
from lddgan.training.autoencoder import AutoencoderGan
from lddgan.training.generator import Gan
from lddgan.training.state import load_state
from tests import test_cli
from tests.lddgan.training.support import first_stage_of, tiny_preset
from tests.needs import needs
from tests.test_cli import ROOT, Outcome, refused

lddgan = test_cli.lddgan  # the fixture

AUTOENCODER, MODEL = "autoencoder.safetensors", "model.safetensors"
RUN = Path("runs/digits")

pytestmark = pytest.mark.usefixtures("one_thread")


def options(**values: object) -> list[str]:
    """{"generator__nf": 8} -> ["--set", "generator.nf=8"]"""
    return [f"--set={name.replace('__', '.')}={value}" for name, value in values.items()]


TINY = options(
    generator__nf=8,
    generator__nz=6,
    generator__z_emb_dim=8,
    generator__mapping_layers=1,
    discriminator__ngf=4,
    discriminator__t_emb_dim=8,
    training__batch=8,
    autoencoder_training__batch=8,
)


def write_photos(folder: Path, size: int, count: int = 16) -> Path:
    """Crops of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    corners = [(top, left) for top in (0, 171) for left in (0, 128, 256, 384)]
    photos = [(photo, corner) for photo in load_sample_images().images for corner in corners]
    for number, (photo, (top, left)) in enumerate(photos[:count]):
        crop = photo[top : top + size, left : left + size]
        Image.fromarray(crop).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """16 images of 32x32."""
    return write_photos(tmp_path_factory.mktemp("photos") / "32", 32)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """A folder with a random autoencoder, another one, and a model, all tiny ones of digits."""
    folder, preset = tmp_path_factory.mktemp("files"), tiny_preset()
    stage = first_stage_of(preset)
    save_checkpoint(folder / AUTOENCODER, stage)
    save_checkpoint(folder / MODEL, random_model(preset))
    stage.autoencoder.decoder.conv_out.bias.data += 1
    save_checkpoint(folder / "other.safetensors", stage)
    return folder


def sampled(lddgan: Any, checkpoint: Path | str) -> np.ndarray:
    """The first images that a checkpoint makes."""
    outcome = lddgan("sample", "--checkpoint", checkpoint, "--num", 4, "--out", "x.npz")
    assert outcome.code == 0, outcome.err
    return np.load("x.npz")["images"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def generator_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / MODEL).generator.state_dict()


def interrupted(lddgan: Any, what: type, *args: object) -> Outcome:
    """The command, with Ctrl-C in its first step."""
    step = what.step

    def stop(self: Any, batch: torch.Tensor, number: int, progress: float) -> Any:
        if number == 0:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, number, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(what, "step", stop)
        return lddgan(*args)


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
    assert not [path.name for path in RUN.iterdir() if path.name.endswith(".state.pt")]
    for stage in ("autoencoder", "generator"):
        lines = (RUN / f"{stage}.losses.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 1]
    refused(lddgan("train", "--dataset", "digits"), f"{RUN / MODEL} is finished")
    refused(lddgan("train-autoencoder", "--dataset", "digits"), f"{RUN / AUTOENCODER} is finished")


def test_a_run_that_ctrl_c_stopped_is_looked_at_and_goes_on(
    lddgan, photos: Path, files: Path
) -> None:
    codec = ("--autoencoder", files / AUTOENCODER)
    common = ("train", "--dataset", "digits", "--data", photos, *codec, "--steps", 3)
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
    refused(lddgan(*again, "--seed", 1), "another seed")
    refused(lddgan(*again, "--set", "generator.nf=16"), "another preset")
    refused(lddgan(*again, "--loss", "reconstruction"), "another preset")
    refused(lddgan(*again[:-4], 4, *again[-3:]), "another number of steps")
    refused(lddgan(*again, "--autoencoder", files / "other.safetensors"), "another autoencoder")
    assert lddgan(*again).code == 0

    assert equal(*(generator_of(Path(name)) for name in ("whole", "cut")))
    assert not np.array_equal(sampled(lddgan, "cut/" + MODEL)[:2], early)
    assert not state.exists()


def test_an_autoencoder_that_ctrl_c_stopped_goes_on(lddgan, photos: Path) -> None:
    common = ("train-autoencoder", "--dataset", "digits", "--data", photos, "--steps", 3, *TINY)
    lddgan(*common, "--out", "whole")
    outcome = interrupted(lddgan, AutoencoderGan, *common, "--out", "cut")
    assert outcome.code == 130 and "stopped after step 1 of 3" in outcome.err
    state = Path("cut/autoencoder.state.pt")
    refused(lddgan("sample", "--checkpoint", state), "the state of an autoencoder")
    again = (*common, "--out", "cut", "--resume")
    refused(lddgan(*again, "--regulariser", "none"), "another preset")
    assert lddgan(*again).code == 0
    whole, resumed = (load_autoencoder(Path(name) / AUTOENCODER) for name in ("whole", "cut"))
    assert whole.preset == resumed.preset
    assert equal(whole.autoencoder.state_dict(), resumed.autoencoder.state_dict())


@pytest.mark.full
def test_a_trained_model_is_exported(lddgan, photos: Path, files: Path) -> None:
    codec = ("--autoencoder", files / AUTOENCODER)
    trained = lddgan("train", "--dataset", "digits", "--data", photos, *codec, "--steps", 2)
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
    codec = ("--dataset", "digits", "--autoencoder", files / AUTOENCODER)
    outcome = lddgan("dataset", "encode", photos, *codec, "--out", "latents")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0] == "latents: the latents of 16 images"
    assert "--latents latents`" in outcome.out.splitlines()[1]
    train = ("train", *codec, "--steps", 2)
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
    refused(lddgan("dataset", "encode", photos, *codec, "--out", "latents"), "is not empty")
    lddgan("dataset", "encode", photos, *codec, "--out", "both", "--flip")
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
    "is CMYK, not RGB": saved("JPEG", "CMYK"),
    "is 16-bit grey, not RGB": saved("PNG", "I;16"),
    "is a palette image, not RGB": saved("PNG", "P"),
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
    codec = ("--dataset", "digits", "--autoencoder", files / AUTOENCODER)
    encode = ("dataset", "encode", "images", *codec, "--out", "latents")
    refused(lddgan(*encode), "00b.png is empty")
    outcome = lddgan(*encode, "--on-bad", "skip")
    assert outcome.code == 0 and "latents: the latents of 15 images" in outcome.out


# ---- refused ----

OF_DIGITS = ("train", "--dataset", "digits", "--autoencoder", "{files}/" + AUTOENCODER)
FOR_TRAIN = (*OF_DIGITS, "--steps", 1, "--data", "{photos}")
FOR_CODEC = ("train-autoencoder", "--dataset", "digits", "--steps", 1, *TINY)
CIFAR = ("train-autoencoder", "--dataset", "cifar10", "--steps", 1, *options(autoencoder__ch=32))
NO_LPIPS = ("--perceptual-weight", 0)
LSUN = (
    *("train-autoencoder", "--dataset", "lsun", "--steps", 1, *NO_LPIPS),
    *options(autoencoder__ch=32, autoencoder_training__batch=8),
)


REFUSED: list[tuple[tuple, tuple[str, ...]]] = [
    # data
    (LSUN, ("no images of lsun", "--data")),
    (("train", "--dataset", "lsun", "--autoencoder", "{lsun}"), ("no images of lsun",)),
    ((*FOR_CODEC, "--data", "none"), ("none does not exist",)),
    ((*FOR_CODEC, "--data", "empty"), ("empty holds no images (.bmp",)),
    ((*FOR_TRAIN, "--data", "empty"), ("empty holds no images (.bmp",)),
    (
        (*FOR_CODEC, "--data", "{photos}", *options(autoencoder_training__batch=20)),
        ("16 images are too few: one batch takes 20",),
    ),
    (
        (*FOR_TRAIN, *options(training__batch=32)),
        ("16 images are too few: one batch takes 32",),
    ),
    (
        (*LSUN, "--data", "{photos}"),
        ("is 32x32, smaller than 256x256",),
    ),
    ((*OF_DIGITS, "--latents", "none"), ("no latents at none", "`lddgan dataset encode`")),
    # the autoencoder
    (("train", "--dataset", "digits"), ("--autoencoder", "train-autoencoder --dataset digits")),
    (("train", "--dataset", "imagenet"), ("imagenet", "cifar10, celeba_256, lsun, digits")),
    (
        ("train", "--dataset", "cifar10", "--autoencoder", "{files}/" + AUTOENCODER),
        (f"{AUTOENCODER} was trained for digits; you asked for cifar10",),
    ),
    (
        ("train", "--dataset", "celeba_256", "--autoencoder", "{files}/" + MODEL),
        (f"{MODEL} was trained for digits; you asked for celeba_256",),
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
        ("is an autoencoder alone", "lddgan train --autoencoder"),
    ),
    # the run
    ((*FOR_TRAIN, "--resume"), ("generator.state.pt does not exist", "nothing to resume")),
    ((*FOR_CODEC, "--resume"), ("autoencoder.state.pt does not exist", "nothing to resume")),
    ((*FOR_TRAIN, "--epochs", 1), ("epochs or steps, not both",)),
    ((*FOR_CODEC, "--epochs", 1), ("epochs or steps, not both",)),
    ((*FOR_CODEC[:-1], "--steps", -1), ("steps is -1",)),
    ((*FOR_CODEC, "--steps", 0), ("no step at all",)),
    ((*FOR_TRAIN, "--seed", -1), ("seed is -1",)),
    ((*FOR_TRAIN, "--accumulate", 4), ("a batch of 8 cannot be cut into 4 parts",)),
    # values
    ((*FOR_TRAIN, "--loss", "adversarial", "--delta", 6), ("delta belongs to", "weighted")),
    ((*FOR_TRAIN, "--loss", "reconstruction", "--delta", 6), ("delta belongs to",)),
    ((*FOR_TRAIN, "--set", "generator.widht=3"), ("'generator.widht'", "generator.nf, ")),
    ((*FOR_CODEC, "--set", "widht=3"), ("'widht'", "autoencoder.ch, ")),
    ((*FOR_CODEC, "--set", "autoencoder"), ("'codec' is no setting; write generator.nf=32",)),
    ((*FOR_TRAIN, "--set", "generator.nf=wide"), ("generator.nf", "valid integer")),
    ((*CIFAR, "--image-size", 33), ("images of 33x33 cannot be encoded",)),
    ((*CIFAR, "--image-size", 4), ("latent_size 2 is no multiple of 4",)),
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
def test_what_cannot_be_is_one_sentence(
    lddgan, photos: Path, files: Path, lsun: Path, args: tuple, words: tuple[str, ...]
) -> None:
    Path("empty").mkdir()
    for suffix in ("safetensors", "ckpt", "state.pt"):
        Path(f"damaged.{suffix}").write_bytes(b"hello")
    given = [str(arg).format(photos=photos, files=files, lsun=lsun) for arg in args]
    refused(lddgan(*given), *words)
    assert not Path("runs").exists() or not [*Path().rglob(AUTOENCODER), *Path().rglob(MODEL)]


@pytest.fixture(scope="module")
def lsun(tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """A narrow autoencoder of lsun."""
    preset = with_values(get_preset("lsun"), {"autoencoder.ch": 32, "autoencoder.blocks": 1})
    return save_checkpoint(tmp_path_factory.mktemp("lsun") / AUTOENCODER, first_stage_of(preset))


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
def test_numbers_that_no_training_can_use_are_one_sentence(
    lddgan, photos: Path, files: Path, value: str
) -> None:
    command = FOR_CODEC if value.startswith("autoencoder") else FOR_TRAIN
    given = [str(arg).format(photos=photos, files=files) for arg in command]
    refused(lddgan(*given, "--data", photos, "--set", value))


def test_the_digits_have_one_size(lddgan) -> None:
    refused(lddgan(*FOR_CODEC, "--image-size", 64), "64", "--data")


def test_images_too_small_for_the_patch_discriminator(lddgan, photos: Path) -> None:
    values = options(autoencoder_training__batch=8, autoencoder_training__disc_start=0)
    small = (*CIFAR, *NO_LPIPS, *values, "--data", photos, "--image-size", 16)
    refused(lddgan(*small), "16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(lddgan, photos: Path) -> None:
    outcome = lddgan(*FOR_CODEC, "--data", photos, "--device", "cuda")
    refused(outcome, "finds no CUDA GPU here", "--device")


@pytest.mark.parametrize("args", [("--loss", "l2"), ("--workers", -1), ("--accumulate", 0)])
def test_what_is_no_choice_is_a_usage_error(lddgan, args) -> None:
    outcome = lddgan("train", "--dataset", "digits", *args)
    assert outcome.code == 2 and "Usage: lddgan train" in outcome.err


@needs("lpips")
def test_vgg_weights_that_are_not_there(lddgan) -> None:
    asked = ("--vgg", "none.pth", "--perceptual-weight", 1)
    refused(lddgan(*FOR_CODEC, *asked), "none.pth", "--vgg")


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
    refused(lddgan(*FOR_CODEC, "--data", photos, "--out", "taken"), "cannot write taken", code=1)
    assert Path("taken").read_text() == "a file"


def test_a_full_disk_is_one_sentence_and_keeps_the_state(lddgan, photos: Path) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(AUTOENCODER):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", full)
        outcome = lddgan(*FOR_CODEC, "--data", photos)
    refused(outcome, f"cannot write {RUN / AUTOENCODER}: No space left", code=1)
    assert load_state(RUN / "autoencoder.state.pt")["step"] == 1
    assert lddgan(*FOR_CODEC, "--data", photos, "--resume").code == 0


# ---- processes of their own ----

KILLED = """
import os, signal
import cli
from lddgan.data import images
from torch.utils.data import get_worker_info
fit = images.fit

def killed(pixels, size):
    info = get_worker_info()
    if info is not None and info.id == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return fit(pixels, size)

images.fit = killed
cli.main()
"""


class Ended(NamedTuple):
    code: int
    err: str


class Process:
    """A command that is watched while it runs; it and its workers are a group of processes."""

    def __init__(self, cwd: Path, *command: object) -> None:
        self.said = cwd / "said.txt"
        with self.said.open("w") as said:
            self.popen = subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=cwd,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.popen.pid, signal.SIGKILL)
                self.popen.wait()

    def until(self, losses: Path) -> Self:
        """Wait for the first line of losses."""
        while not (losses.exists() and losses.stat().st_size):
            assert self.popen.poll() is None, f"ended too early:\n{self.said.read_text()}"
            time.sleep(0.005)
        return self

    def end(self, seconds: float = 120) -> Ended:
        """Wait for its end."""
        code = self.popen.wait(seconds)
        return Ended(code, self.said.read_text())

    def is_gone(self) -> bool:
        """Whether nothing of it runs any more."""
        try:
            os.killpg(self.popen.pid, 0)
        except ProcessLookupError:
            return True
        return False


def test_a_killed_worker_ends_the_command(tmp_path: Path, photos: Path) -> None:
    common = (*FOR_CODEC, "--data", photos, "--workers", 2, "--steps", 100)
    with Process(tmp_path, "-c", KILLED, *common) as process:
        ended = process.end(60)
        assert ended.code == 1 and "error: reading the images failed: " in ended.err
        assert "Traceback" not in ended.err and process.is_gone()


alone = ("-m", "cli")
ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "cli")


@pytest.mark.full
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_ends_as_signals_do(
    tmp_path: Path, photos: Path, number: int, code: int
) -> None:
    common = ("train-autoencoder", "--dataset", "digits", "--data", photos, "--workers", 2)
    with Process(tmp_path, *alone, *common, "--steps", 1000, *TINY) as process:
        process.until(tmp_path / RUN / "autoencoder.losses.jsonl")
        os.killpg(process.popen.pid, number)  # as a terminal does
        ended = process.end()
    assert ended.code == code, ended.err
    step = load_state(tmp_path / RUN / "autoencoder.state.pt")["step"]
    stopped = f"stopped after step {step} of 1,000; go on with --resume"
    assert ended.err.splitlines()[-1] == stopped and "Traceback" not in ended.err
    assert process.is_gone()


def rank_of(process: Process, rank: int) -> int:
    """The id of one of the processes that torchrun has started."""
    parent = process.popen.pid
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"no rank {rank}")


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_rank_ends_all_and_leaves_the_state(
    tmp_path: Path, photos: Path, files: Path
) -> None:
    codec = ("--autoencoder", files / AUTOENCODER)
    common = ("train", "--dataset", "digits", "--data", photos, *codec, "--steps", 80)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with Process(tmp_path, *ranks, *common, "--out", whole) as process:
        assert process.end().code == 0, process.said.read_text()
    losses, state = cut / "generator.losses.jsonl", cut / "generator.state.pt"
    with Process(tmp_path, *ranks, *common, "--out", cut) as process:
        process.until(losses).popen.terminate()
        assert process.end().code != 0
    kept = state.read_bytes()
    assert 0 < load_state(state)["step"] < 80
    for rank in (1, 0):
        losses.unlink()
        with Process(tmp_path, *ranks, *common, "--out", cut, "--resume") as process:
            os.kill(rank_of(process.until(losses), rank), signal.SIGKILL)
            assert process.end().code != 0
        assert state.read_bytes() == kept and not (cut / MODEL).exists()
    with Process(tmp_path, *ranks, *common, "--out", cut, "--resume") as process:
        assert process.end().code == 0, process.said.read_text()
    assert equal(*(generator_of(folder) for folder in (whole, cut)))


BIG = {"cifar10": 32, "celeba_256": 64, "lsun": 128}


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dataset", BIG)
def test_two_processes_are_stopped_and_go_on(lddgan, tmp_path: Path, dataset: str) -> None:
    images = write_photos(tmp_path / "images", 256)
    narrow = options(
        autoencoder__ch=32,
        generator__nf=32,
        discriminator__ngf=16,
        training__batch=8,
        autoencoder_training__batch=8,
        autoencoder_training__disc_start=1,
    )
    common = ("--dataset", dataset, "--data", images, "--steps", 3, "--workers", 1)
    first = ("train-autoencoder", *common, "--image-size", BIG[dataset], *NO_LPIPS, *narrow)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    twice(tmp_path, first, whole, cut, "autoencoder")
    one, other = (load_autoencoder(folder / AUTOENCODER) for folder in (whole, cut))
    assert one.preset == other.preset
    assert equal(one.autoencoder.state_dict(), other.autoencoder.state_dict())
    second = ("train", *common, "--autoencoder", whole / AUTOENCODER)
    twice(tmp_path, second, whole, cut, "generator")
    assert equal(*(generator_of(folder) for folder in (whole, cut)))
    uninterrupted, resumed = (sampled(lddgan, folder / MODEL) for folder in (whole, cut))
    assert uninterrupted.shape == (4, BIG[dataset], BIG[dataset], 3) and uninterrupted.std() > 0
    assert np.array_equal(uninterrupted, resumed)


def twice(cwd: Path, command: tuple[object, ...], whole: Path, cut: Path, stage: str) -> None:
    """Train on two processes: in one go, and stopped after a step and resumed."""
    with Process(cwd, *ranks, *command, "--out", whole) as process:
        assert process.end().code == 0, process.said.read_text()
    with Process(cwd, *ranks, *command, "--out", cut) as process:
        process.until(cut / f"{stage}.losses.jsonl").popen.terminate()
        ended = process.end()
    step = load_state(cut / f"{stage}.state.pt")["step"]
    assert ended.code != 0 and 1 <= step < 3
    assert f"stopped after step {step} of 3; go on with --resume" in ended.err.splitlines()
    with Process(cwd, *ranks, *command, "--out", cut, "--resume") as process:
        assert process.end().code == 0, process.said.read_text()
    assert not (cut / f"{stage}.state.pt").exists()
