"""Stored latents are what the encoder gives for each image, and are there whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lddgan.checkpoint import TrainedAutoencoder, random_model
from lddgan.data.decode import fit
from lddgan.data.feed import Feed
from lddgan.data.images import ImageFiles, InMemory, Read
from lddgan.data.open_source import open_source
from lddgan.data.order import Order
from lddgan.errors import BadInput, LddganError
from lddgan.networks.autoencoder import draw_latent
from lddgan.preset import Preset, with_values
from lddgan.training import encode as encoding
from lddgan.training.encode import encode_images
from lddgan.training.latents import (
    AT_ONCE,
    StoredLatents,
    encode_moments,
    latents_of,
    open_latents,
)
from tests.conftest import TINY, TINY_VQ

TINY_NONE = with_values(TINY, {"autoencoder.kind": "none"})
PRESETS = {"kl": TINY, "none": TINY_NONE, "vq": TINY_VQ}
COUNT = 11
PICTURES = np.random.default_rng(5).integers(0, 256, (COUNT, 40, 36, 3), np.uint8)

pytestmark = pytest.mark.usefixtures("one_thread")


def stage_of(preset: Preset) -> TrainedAutoencoder:
    return TrainedAutoencoder(preset, random_model(preset).autoencoder)


@pytest.fixture(scope="module")
def stages() -> dict[str, TrainedAutoencoder]:
    return {kind: stage_of(preset) for kind, preset in PRESETS.items()}


@pytest.fixture(scope="module")
def stage(stages: dict[str, TrainedAutoencoder]) -> TrainedAutoencoder:
    return stages["kl"]


def image_files(at: Path, bad: Sequence[int] = ()) -> ImageFiles:
    """The pictures as files, some of them empty."""
    at.mkdir()
    for index, pixels in enumerate(PICTURES):
        Image.fromarray(pixels).save(at / f"{index:02d}.png")
    for index in bad:
        (at / f"{index:02d}.png").write_bytes(b"")
    return ImageFiles(open_source(at), TINY.image_size)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ImageFiles:
    return image_files(tmp_path_factory.mktemp("files") / "images")


FITTED = np.stack([fit(pixels, 32) for pixels in PICTURES])  # [N,H,W,3]


def floats(pixels: np.ndarray) -> Tensor:
    """[N,H,W,3] -> [N,3,H,W] in [-1,1]"""
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1))


@torch.no_grad()
def reference(stage: TrainedAutoencoder, pixels: np.ndarray) -> np.ndarray:
    """Moments [N,M,h,w] layer by layer, one image at a time."""
    codec, preset = stage.autoencoder, stage.preset
    out = torch.cat([codec.quant_conv(codec.encoder(image[None])) for image in floats(pixels)])
    mean, logvar = out[:, : preset.latent_channels], out[:, preset.latent_channels :]
    parts = [mean, logvar.clamp(-30, 20)] if preset.autoencoder.kind == "kl" else [mean]
    return torch.cat(parts, dim=1).numpy()


def mirrored(pixels: np.ndarray) -> np.ndarray:
    return np.stack([np.fliplr(image) for image in pixels])


def encode(folder: Path, stage: TrainedAutoencoder, images, **changes) -> int:
    settings = {
        "flip": False,
        "device": "cpu",
        "batch": 4,
        "workers": 0,
        "on_bad": "stop",
        "log": lambda line: None,
        "source": "somewhere",
    }
    return encode_images(folder, stage, images, **(settings | changes))


def everything(stored: StoredLatents, side: bool = False) -> np.ndarray:
    return stored.read(range(len(stored)), [side] * len(stored)).values.numpy()


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Within what another batch size changes."""
    return found.shape == expected.shape and np.allclose(found, expected, rtol=1e-4, atol=1e-4)


# ---- moments ----


@pytest.mark.parametrize("kind", PRESETS)
def test_moments_are_what_the_encoder_gives(stages, kind: str) -> None:
    stage = stages[kind]
    found = encode_moments(stage.autoencoder, floats(FITTED)).numpy()
    channels = {"kl": 8, "none": 4, "vq": 3}[kind]
    assert found.shape == (COUNT, channels, 8, 8) and found.dtype == np.float32
    assert close(found, reference(stage, FITTED))
    assert found.std() > 0.1, "the comparison says something"


def test_a_drawn_latent_has_the_mean_and_variance_of_the_posterior() -> None:
    generator = torch.Generator().manual_seed(1)
    mean, logvar = torch.randn(2, 1, 4, 2, 2, generator=generator)
    moments = torch.cat([mean, logvar], dim=1).repeat(40_000, 1, 1, 1)
    drawn = draw_latent(moments, torch.randn(40_000, 4, 2, 2, generator=generator))
    deviation = (logvar[0] / 2).exp()
    assert ((drawn.mean(0) - mean[0]).abs() < 5 * deviation / 200).all()
    assert ((drawn.var(0) / deviation**2 - 1).abs() < 0.05).all()


def test_a_latent_without_variance_is_taken_as_it_is() -> None:
    moments = torch.randn(2, 4, 3, 3)
    assert torch.equal(draw_latent(moments, torch.randn(2, 4, 3, 3)), moments)


# ---- stored ----


@pytest.mark.parametrize(("kind", "workers"), [("kl", 2), ("none", 0), ("vq", 0)])
def test_stored_are_the_moments_of_every_image_and_of_it_mirrored(
    tmp_path: Path, stages, files, kind: str, workers: int
) -> None:
    stage = stages[kind]
    assert encode(tmp_path / "latents", stage, files, flip=True, workers=workers) == COUNT
    stored = open_latents(tmp_path / "latents", stage)
    assert len(stored) == COUNT and stored.has_mirrored
    straight, other = everything(stored), everything(stored, True)
    assert close(straight, reference(stage, FITTED))
    assert close(other, reference(stage, mirrored(FITTED)))
    assert not close(straight, other)
    mixed = stored.read([7, 2, 7], [True, False, False])
    assert mixed.bad == [] and mixed.values.dtype == torch.float32
    assert np.array_equal(mixed.values, np.stack([other[7], straight[2], straight[7]]))


def test_the_record_says_of_what_the_latents_are(tmp_path: Path, stage, files) -> None:
    encode(tmp_path / "latents", stage, files)
    record = json.loads((tmp_path / "latents" / "latents.json").read_text())
    array = np.load(tmp_path / "latents" / "latents.npy")
    assert list(array.shape) == record["shape"] == [COUNT, 1, 8, 8, 8]
    assert record["dtype"] == str(array.dtype) == "float32"
    assert (record["dataset"], record["image_size"], record["source"]) == ("tiny", 32, "somewhere")
    assert (record["count"], record["left_out"], record["flip"]) == (COUNT, 0, False)
    assert 0 <= record["verification_error"] < 1e-5
    assert (tmp_path / "latents").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("kind", PRESETS)
def test_in_memory_they_are_those_of_the_folder(tmp_path: Path, stages, kind: str) -> None:
    stage = stages[kind]
    images = floats(FITTED)
    encode(tmp_path / "latents", stage, InMemory(images))
    stored = everything(open_latents(tmp_path / "latents", stage))
    assert close(everything(latents_of(stage.autoencoder, images, "cpu")), stored)


def test_in_memory_there_may_be_more_than_one_chunk(stage) -> None:
    index = torch.arange(AT_ONCE + 3) % COUNT
    found = everything(latents_of(stage.autoencoder, floats(FITTED)[index], "cpu"))
    assert close(found, reference(stage, FITTED)[index.numpy()])


def test_mirrored_ones_are_refused_where_there_are_none(tmp_path: Path, stage, files) -> None:
    encode(tmp_path / "latents", stage, files)
    stored = open_latents(tmp_path / "latents", stage)
    assert not stored.has_mirrored
    with pytest.raises(BadInput, match=r"mirrored images are missing; .* --flip`, or train"):
        stored.read([0, 1], [False, True])


def test_what_is_read_is_a_copy(tmp_path: Path, stage, files) -> None:
    encode(tmp_path / "latents", stage, files)
    for stored in (
        open_latents(tmp_path / "latents", stage),
        latents_of(stage.autoencoder, floats(FITTED), "cpu"),
    ):
        before = stored.read([3], [False]).values.clone()
        stored.read([3], [False]).values.zero_()
        assert torch.equal(stored.read([3], [False]).values, before)


def test_other_processes_read_the_same(tmp_path: Path, stage, files) -> None:
    encode(tmp_path / "latents", stage, files, flip=True)
    stored = open_latents(tmp_path / "latents", stage)

    def batches(workers: int) -> list[Tensor]:
        feed = Feed(
            stored,
            Order(COUNT, 5, 3, flip=True),
            torch.arange(5),
            workers=workers,
            on_bad="stop",
            log=print,
        )
        return list(feed.batches(0, 6))

    here = batches(0)
    assert len(here) == 6 and here[0].shape == (5, 8, 8, 8)
    assert all(torch.equal(a, b) for a, b in zip(here, batches(2), strict=True))


def test_a_process_that_is_started_anew_is_given_the_path_alone(
    tmp_path: Path, stage, files
) -> None:
    encode(tmp_path / "latents", stage, files, flip=True)
    stored = open_latents(tmp_path / "latents", stage)
    sent = pickle.dumps(stored)
    assert len(sent) < 500
    again = pickle.loads(sent)
    assert np.array_equal(everything(again, True), everything(stored, True))
    in_memory = latents_of(stage.autoencoder, floats(FITTED), "cpu")
    again = pickle.loads(pickle.dumps(in_memory))
    assert np.array_equal(everything(again), everything(in_memory))


# ---- bad images ----


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_and_told(tmp_path: Path, stage, workers: int) -> None:
    bad = [0, 4, 5, 6, 7, 10]  # the first, all of a batch, the last
    images = image_files(tmp_path / "images", bad)
    said: list[str] = []
    out = tmp_path / "latents"
    changes = {"flip": True, "workers": workers, "on_bad": "skip", "log": said.append}
    assert encode(out, stage, images, **changes) == 5
    stored = open_latents(out, stage)
    good = np.delete(FITTED, bad, axis=0)
    assert close(everything(stored), reference(stage, good))
    assert close(everything(stored, True), reference(stage, mirrored(good)))
    told = [line for line in said if line.startswith("left out: ")]
    assert told == [f"left out: {tmp_path}/images/{index:02d}.png is empty" for index in bad]
    assert json.loads((out / "latents.json").read_text())["left_out"] == 6
    assert (out / "latents.npy").stat().st_size == 128 + 4 * 5 * 2 * 8 * 8 * 8


def test_a_bad_image_stops_unless_it_may_be_left_out(tmp_path: Path, stage) -> None:
    images = image_files(tmp_path / "images", [6])
    with pytest.raises(BadInput, match=r"06\.png is empty; leave it out, or .* --on-bad skip"):
        encode(tmp_path / "latents", stage, images)
    assert os.listdir(tmp_path) == ["images"]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_alone_are_refused(tmp_path: Path, stage, workers: int) -> None:
    images = image_files(tmp_path / "images", range(COUNT))
    with pytest.raises(BadInput, match="all 11 images are bad"):
        encode(tmp_path / "latents", stage, images, on_bad="skip", workers=workers)

    class AllBad(Pictures):
        def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
            return Read(torch.zeros(1, 3, 32, 32), ["it is bad"])

    with pytest.raises(BadInput, match="all 11 images are bad"):
        encode(tmp_path / "latents", stage, AllBad(), on_bad="skip", workers=workers)
    assert os.listdir(tmp_path) == ["images"]


# ---- whole or not at all ----


class Pictures(InMemory):
    """The pictures; something may happen when one is read."""

    def __init__(self) -> None:
        super().__init__(floats(FITTED))

    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
        if index[0] == 6:
            self.happen()
        return super().read(index, mirrored)

    def happen(self) -> None:
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_is_broken_off_leaves_nothing(tmp_path: Path, stage, error) -> None:
    class Broken(Pictures):
        def happen(self) -> None:
            raise error

    with pytest.raises(error):
        encode(tmp_path / "latents", stage, Broken())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_fails_to_read_is_one_sentence(tmp_path: Path, stage, workers: int) -> None:
    class Unreadable(Pictures):
        def happen(self) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(LddganError, match=r"^reading the images failed: Input/output error$"):
        encode(tmp_path / "latents", stage, Unreadable(), workers=workers)
    assert os.listdir(tmp_path) == []


def test_a_reader_that_dies_is_one_sentence(tmp_path: Path, stage) -> None:
    class Dying(Pictures):
        def happen(self) -> None:
            os._exit(3)

    with pytest.raises(LddganError, match=r"reading the images failed: .*worker") as caught:
        encode(tmp_path / "latents", stage, Dying(), workers=1)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


ENDED = """
import os, signal, sys
from pathlib import Path
import torch
import tests.lddgan.training.test_latents as tests

main, number, workers = os.getpid(), int(sys.argv[2]), int(sys.argv[3])
signal.signal(signal.SIGINT, signal.default_int_handler)

class Ended(tests.Pictures):
    def happen(self):
        os.kill(main, number)

torch.set_num_threads(1)
tests.encode(Path(sys.argv[1]), tests.stage_of(tests.TINY), Ended(), batch=1, workers=workers)
"""


def test_a_signal_ends_it_and_leaves_nothing_at_its_name(tmp_path: Path, stage, files) -> None:
    def command(name: str, number: int, workers: int) -> list[str]:
        arguments = [str(tmp_path / name / "latents"), str(int(number)), str(workers)]
        return [sys.executable, "-c", ENDED, *arguments]

    with subprocess.Popen(command("killed", signal.SIGKILL, 0)) as killed:
        interrupted = subprocess.run(
            command("interrupted", signal.SIGINT, 2), capture_output=True, timeout=60, check=False
        )
    assert killed.returncode == -signal.SIGKILL
    assert b"KeyboardInterrupt" in interrupted.stderr
    assert os.listdir(tmp_path / "interrupted") == []
    (left,) = (tmp_path / "killed").iterdir()
    assert left.name.startswith(".latents.") and not (left / "latents.json").exists()
    encode(tmp_path / "killed" / "latents", stage, files)
    assert len(open_latents(tmp_path / "killed" / "latents", stage)) == COUNT


def full(*arguments) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_before_anything_is_encoded(
    tmp_path: Path, stage, files, monkeypatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full)
    said = r"take 2\.27e-05 GB, for which the disk has no room: No space left"
    with pytest.raises(LddganError, match=said):
        encode(tmp_path / "latents", stage, files, log=pytest.fail)
    assert os.listdir(tmp_path) == []


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 8 KiB, the one that pytest reports to included: for one call only."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("reserves", [True, False])
def test_a_disk_that_takes_no_more_is_one_sentence(
    tmp_path: Path, stage, files, monkeypatch, reserves: bool
) -> None:
    def cannot(*arguments) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if not reserves:
        monkeypatch.setattr(os, "posix_fallocate", cannot)
    said = "the disk has no room: File too" if reserves else "cannot write .*latents: File too"
    with pytest.raises(LddganError, match=said) as caught, small_files():
        encode(tmp_path / "latents", stage, files)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, BadInput)
    assert os.listdir(tmp_path) == []


def test_without_reserving_it_is_the_same_file(tmp_path: Path, stage, files, monkeypatch) -> None:
    encode(tmp_path / "one", stage, files)
    monkeypatch.delattr(os, "posix_fallocate")
    encode(tmp_path / "two", stage, files)
    one, two = ((tmp_path / name / "latents.npy").read_bytes() for name in ("one", "two"))
    assert one == two


def test_only_an_empty_folder_is_taken(tmp_path: Path, stage, files) -> None:
    out = tmp_path / "latents"
    out.mkdir()
    encode(out, stage, files)
    before = (out / "latents.json").read_bytes()
    with pytest.raises(BadInput, match="latents is not empty; choose another --out"):
        encode(out, stage, files)
    assert (out / "latents.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file exists and is not a folder"):
        encode(tmp_path / "file", stage, files)
    with pytest.raises(LddganError, match=r"cannot write .*below: File exists"):
        encode(tmp_path / "file" / "below", stage, files)


def test_images_are_encoded_without_tf32(tmp_path: Path, stage) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    class Looking(Pictures):
        def happen(self) -> None:
            assert not matmul.allow_tf32 and not cudnn.allow_tf32

    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        encode(tmp_path / "latents", stage, Looking())
        assert matmul.allow_tf32 and cudnn.allow_tf32
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


# ---- verification ----


def test_images_that_change_while_they_are_encoded_are_noticed(tmp_path: Path, stage) -> None:
    class Changing(Pictures):
        def happen(self) -> None:
            self.images = self.images * 0.99

    with pytest.raises(LddganError, match=r"encoded twice differ by \d\.\de-0\d of the largest"):
        encode(tmp_path / "latents", stage, Changing())
    assert os.listdir(tmp_path) == []


def test_mirrored_latents_are_compared_with_images_that_are_read_mirrored(
    tmp_path: Path, stage
) -> None:
    class NotMirrored(Pictures):
        def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
            return super().read(index, [False] * len(index))

    encode(tmp_path / "one", stage, NotMirrored())
    with pytest.raises(LddganError, match="encoded twice"):
        encode(tmp_path / "two", stage, NotMirrored(), flip=True)


def test_an_error_of_the_means_does_not_hide_behind_large_log_variances() -> None:
    expected = np.concatenate([np.ones((1, 1, 2, 3, 3)), np.full((1, 1, 2, 3, 3), -30.0)], axis=2)
    found = expected.copy()
    found[0, 0, 1, 2, 2] += 1e-3
    assert encoding.difference(found, expected, 2) == pytest.approx(1e-3)
    assert encoding.difference(found, expected, 4) == pytest.approx(1e-3 / 30)


def test_latents_that_are_not_finite_are_refused(tmp_path: Path, stage) -> None:
    class Poisoned(Pictures):
        def __init__(self) -> None:
            super().__init__()
            self.images[9, 1, 4, 4] = float("nan")

    with pytest.raises(LddganError, match="the latent of image 9 is not finite"):
        encode(tmp_path / "latents", stage, Poisoned())
    assert os.listdir(tmp_path) == []


# ---- what cannot be opened ----


@pytest.fixture
def folder(tmp_path: Path, stage, files) -> Path:
    encode(tmp_path / "latents", stage, files)
    return tmp_path / "latents"


def refused(folder: Path, stage: TrainedAutoencoder, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        open_latents(folder, stage)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert "lddgan dataset encode" in str(caught.value) or "holds no latents" in said


def edit(folder: Path, **changes) -> None:
    path = folder / "latents.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_no_folder_of_latents_is_said(tmp_path: Path, stage) -> None:
    refused(tmp_path / "nothing", stage, "there are no latents at .*nothing; ")
    refused(tmp_path, stage, "holds no latents: it has no latents.json")


def test_the_latents_of_another_autoencoder_are_refused(folder: Path, stage) -> None:
    other = stage_of(TINY)
    other.autoencoder.quant_conv.bias[0] += 1e-6
    refused(folder, other, "latents of another autoencoder; encode the images again")
    assert len(open_latents(folder, stage_of(TINY))) == COUNT, "another copy of the same"


def test_the_latents_of_another_kind_with_the_same_tensors_are_refused(folder: Path, stage) -> None:
    none = dataclasses.replace(stage, preset=TINY_NONE)
    refused(folder, none, r"\[8, 8, 8\] per image, where .* of kind 'none' gives \[4, 8, 8\]")


def test_a_changed_byte_is_noticed(folder: Path, stage) -> None:
    path = folder / "latents.npy"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(folder, stage, r"latents\.npy has changed since it was written \(sha256 differs\)")


def test_a_file_that_is_cut_or_missing_is_noticed(folder: Path, stage) -> None:
    path = folder / "latents.npy"
    os.truncate(path, 9000)
    refused(folder, stage, r"latents\.npy has 9,000 bytes, latents\.json says 22,656")
    path.unlink()
    refused(folder, stage, r"latents\.npy is missing")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_version": 2}, "is not of schema 1: schema_version: "),
        ({"more": 1}, "is not of schema 1: more: "),
        ({"count": 10}, r"holds \[8, 8, 8\] per image"),
    ],
)
def test_a_record_of_another_version_or_edited_is_refused(
    folder: Path, stage, changes: dict, said: str
) -> None:
    edit(folder, **changes)
    refused(folder, stage, said)


def test_a_record_that_is_no_json_is_refused(folder: Path, stage) -> None:
    (folder / "latents.json").write_text("{")
    refused(folder, stage, "latents.json is not of schema 1: the file: Invalid JSON")
