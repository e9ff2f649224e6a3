"""Stored latents are what the encoder gives for each image, and are there whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lddgan.checkpoint import TrainedAutoencoder
from lddgan.data.feed import Feed, Order
from lddgan.data.images import InMemory
from lddgan.errors import BadInput
from lddgan.networks.autoencoder import draw_latent
from lddgan.training.latents import ENCODE_BATCH, latents_of, open_latents
from tests.conftest import TINY
from tests.lddgan.training.stored import (
    COUNT,
    FITTED,
    PRESETS,
    TINY_NONE,
    close,
    encode,
    everything,
    floats,
    mirrored,
    reference,
)
from tests.lddgan.training.support import random_autoencoder

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- moments ----


@pytest.mark.parametrize("kind", PRESETS)
def test_moments_are_what_the_encoder_gives(trained_by_kind, kind: str) -> None:
    trained = trained_by_kind[kind]
    found = trained.autoencoder.moments(floats(FITTED)).numpy()
    channels = {"kl": 8, "none": 4, "vq": 3}[kind]
    assert found.shape == (COUNT, channels, 8, 8) and found.dtype == np.float32
    assert close(found, reference(trained, FITTED))
    assert found.std() > 0.1, "the comparison says something"


def test_drawn_latent_has_the_posteriors_mean_and_variance() -> None:
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
def test_stored_moments_are_of_every_image_and_mirror_image(
    tmp_path: Path, trained_by_kind, files, kind: str, workers: int
) -> None:
    trained = trained_by_kind[kind]
    assert encode(tmp_path / "latents", trained, files, flip=True, workers=workers) == COUNT
    stored = open_latents(tmp_path / "latents", trained)
    assert len(stored) == COUNT and stored.has_mirrored
    straight, other = everything(stored), everything(stored, True)
    assert close(straight, reference(trained, FITTED))
    assert close(other, reference(trained, mirrored(FITTED)))
    assert not close(straight, other)
    mixed = stored.read([7, 2, 7], [True, False, False])
    assert mixed.bad == [] and mixed.values.dtype == torch.float32
    assert np.array_equal(mixed.values, np.stack([other[7], straight[2], straight[7]]))


def test_record_describes_the_latents(tmp_path: Path, trained, files) -> None:
    encode(tmp_path / "latents", trained, files)
    record = json.loads((tmp_path / "latents" / "latents.json").read_text())
    array = np.load(tmp_path / "latents" / "latents.npy")
    assert list(array.shape) == record["shape"] == [COUNT, 1, 8, 8, 8]
    assert record["dtype"] == str(array.dtype) == "float32"
    assert (record["dataset"], record["image_size"], record["source"]) == ("tiny", 32, "somewhere")
    assert (record["count"], record["left_out"], record["flip"]) == (COUNT, 0, False)
    assert 0 <= record["verification_error"] < 1e-5
    assert (tmp_path / "latents").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("kind", PRESETS)
def test_latents_in_memory_equal_stored_ones(tmp_path: Path, trained_by_kind, kind: str) -> None:
    trained = trained_by_kind[kind]
    images = floats(FITTED)
    encode(tmp_path / "latents", trained, InMemory(images))
    stored = everything(open_latents(tmp_path / "latents", trained))
    assert close(everything(latents_of(trained.autoencoder, images)), stored)


def test_latents_in_memory_may_be_several_chunks(trained) -> None:
    index = torch.arange(ENCODE_BATCH + 3) % COUNT
    found = everything(latents_of(trained.autoencoder, floats(FITTED)[index]))
    assert close(found, reference(trained, FITTED)[index.numpy()])


def test_read_latents_are_copies(tmp_path: Path, trained, files) -> None:
    encode(tmp_path / "latents", trained, files)
    for stored in (
        open_latents(tmp_path / "latents", trained),
        latents_of(trained.autoencoder, floats(FITTED)),
    ):
        before = stored.read([3], [False]).values.clone()
        stored.read([3], [False]).values.zero_()
        assert torch.equal(stored.read([3], [False]).values, before)


def test_worker_processes_read_the_same_latents(tmp_path: Path, trained, files) -> None:
    encode(tmp_path / "latents", trained, files, flip=True)
    stored = open_latents(tmp_path / "latents", trained)

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


def test_pickled_latents_hold_only_their_path(tmp_path: Path, trained, files) -> None:
    encode(tmp_path / "latents", trained, files, flip=True)
    stored = open_latents(tmp_path / "latents", trained)
    sent = pickle.dumps(stored)
    assert len(sent) < 500
    again = pickle.loads(sent)
    assert np.array_equal(everything(again, True), everything(stored, True))
    in_memory = latents_of(trained.autoencoder, floats(FITTED))
    again = pickle.loads(pickle.dumps(in_memory))
    assert np.array_equal(everything(again), everything(in_memory))


# ---- what cannot be opened ----


@pytest.fixture
def folder(tmp_path: Path, trained, files) -> Path:
    encode(tmp_path / "latents", trained, files)
    return tmp_path / "latents"


def refused(folder: Path, trained: TrainedAutoencoder, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        open_latents(folder, trained)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert "lddgan dataset encode" in str(caught.value)


def edit(folder: Path, **changes) -> None:
    path = folder / "latents.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_folder_without_latents_is_refused(tmp_path: Path, trained) -> None:
    refused(tmp_path / "nothing", trained, "there are no latents at .*nothing; ")
    refused(tmp_path, trained, "there are no latents at")


def test_the_latents_of_another_autoencoder_are_refused(folder: Path, trained) -> None:
    other = random_autoencoder(TINY)
    other.autoencoder.quant_conv.bias[0] += 1e-6
    refused(folder, other, "latents of another autoencoder; encode the images again")
    assert len(open_latents(folder, random_autoencoder(TINY))) == COUNT, "another copy of the same"


def test_latents_of_another_kind_are_refused(folder: Path, trained) -> None:
    none = dataclasses.replace(trained, preset=TINY_NONE)
    refused(folder, none, r"\[8, 8, 8\] per image, where .* of kind 'none' gives \[4, 8, 8\]")


def test_a_changed_byte_is_noticed(folder: Path, trained) -> None:
    path = folder / "latents.npy"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(folder, trained, r"latents\.npy is not what was written \(sha256 differs\)")


def test_cut_or_missing_latents_are_refused(folder: Path, trained) -> None:
    path = folder / "latents.npy"
    os.truncate(path, 9000)
    refused(folder, trained, r"latents\.npy is not what was written")
    path.unlink()
    refused(folder, trained, r"latents\.npy is not what was written")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_version": 2}, "is not of schema 1: schema_version: "),
        ({"more": 1}, "is not of schema 1: more: "),
        ({"count": 10}, r"holds \[8, 8, 8\] per image"),
    ],
)
def test_a_record_of_another_version_or_edited_is_refused(
    folder: Path, trained, changes: dict, said: str
) -> None:
    edit(folder, **changes)
    refused(folder, trained, said)


def test_a_record_that_is_no_json_is_refused(folder: Path, trained) -> None:
    (folder / "latents.json").write_text("{")
    refused(folder, trained, "latents.json is not of schema 1: the file: Invalid JSON")
