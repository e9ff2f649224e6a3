"""Folders whose names are not UTF-8, hold control characters or are very long: all works there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from bench.machine import output_of
from bench.row import add_rows, read_rows
from engine.registry import open_engine
from export.bundle import DIGITS, open_bundle
from export.exporter import export_bundle
from lddgan import checkpoint
from lddgan.checkpoint import Model, load_checkpoint, save_checkpoint
from lddgan.data.open_source import open_source
from lddgan.errors import BadInput
from lddgan.files import atomic_folder, atomic_write
from lddgan.training.latents import RECORD, open_latents
from lddgan.training.log import TrainingLog
from tests import conftest, test_cli
from tests.bench.rows import row
from tests.lddgan.data.support import PICTURES, encoded
from tests.lddgan.runs import AUTOENCODER, MODEL, TINY, write_photos
from tests.lddgan.training.stored import encode, image_files
from tests.lddgan.training.support import random_autoencoder
from tests.needs import needs
from tests.test_cli import ROOT

lddgan = test_cli.lddgan  # the fixture

RAW = b"K\xf6ln \x1b[7m\n#1"
SHOWN = r"K\xf6ln \x1b[7m\n#1"  # to people and in JSON

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with such a name."""
    folder = tmp_path / os.fsdecode(RAW)
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"this file system takes no such name: {error}")
    return folder


# ---- libraries that take UTF-8 only ----


@pytest.mark.parametrize(
    "engine", ["torch", "ort", pytest.param("openvino", marks=needs("openvino"))]
)
def test_engines_run_bundles_at_any_path(odd: Path, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    shutil.copytree(DIGITS, odd / "b")
    images = []
    for folder in (DIGITS, odd / "b"):
        with open_engine(folder, engine, "fp32", "cpu") as sampler:
            images.append(sampler.sample(2, seed=5))
    assert np.array_equal(*images)


@needs("lmdb")
@pytest.mark.parametrize("name", [b"\xe4\xf6.mdb", b"\xfc"])
def test_lmdb_at_any_path(odd: Path, tmp_path: Path, name: bytes) -> None:
    import lmdb

    subdir = not name.endswith(b".mdb")
    with (
        lmdb.open(str(tmp_path / "db"), subdir=subdir) as made,
        made.begin(write=True) as transaction,
    ):
        transaction.put(b"7", encoded(PICTURES[1]))
    path = odd / os.fsdecode(name)
    (tmp_path / "db").rename(path)
    handles = len(os.listdir("/proc/self/fd"))
    source = open_source(path)
    assert np.array_equal(source.read(0), PICTURES[1])
    assert len(os.listdir("/proc/self/fd")) <= handles + 1  # the LMDB's own


def test_losses_and_tensorboard_at_any_path(odd: Path, tmp_path: Path) -> None:
    with TrainingLog(odd, "generator", 0, 3) as log:
        for step in range(3):
            log.note(step, {"g": 2.0 * step})
        log.finish()
    assert (odd / "generator.losses.png").is_file()
    (events,) = (odd / "tensorboard" / "generator").iterdir()
    found = EventFileLoader(str(shutil.copy(events, tmp_path / "events"))).Load()
    values = [value for event in found for value in event.summary.value]
    assert [value.tensor.float_val[0] for value in values] == [0.0, 2.0, 4.0]


# ---- JSON ----


def test_latents_and_checkpoints_say_where_images_were(odd: Path) -> None:
    trained = random_autoencoder(conftest.TINY)
    encode(odd / "l", trained, image_files(odd / "i"), source=str(odd / "i"))
    assert json.loads((odd / "l" / RECORD).read_bytes())["source"].endswith(f"{SHOWN}/i")
    assert len(open_latents(odd / "l", trained)) == 11


def test_checkpoints_written_before_are_exported(odd: Path, tiny_model, monkeypatch) -> None:
    found = {"data": str(odd), "command": f"lddgan train --data {odd}", "notes": ["\udcff"]}
    model = Model(tiny_model.preset, tiny_model.generator, tiny_model.autoencoder, found)
    new = load_checkpoint(save_checkpoint(odd / "new.safetensors", model))
    assert str(new.provenance["data"]).endswith(SHOWN)
    with monkeypatch.context() as before:
        before.setattr(checkpoint, "in_json", dict)
        save_checkpoint(odd / "old.safetensors", model)
    old = load_checkpoint(odd / "old.safetensors")
    assert old.provenance == found
    export_bundle(old, odd / "b", (), checkpoint=odd / "old.safetensors")
    assert open_bundle(odd / "b").manifest.provenance == new.provenance


def test_rows_name_what_failed(odd: Path) -> None:
    note = f"not verified: {BadInput(f'{odd} is gone')}"
    add_rows([row(notes=(note,))], odd / "s.jsonl")
    assert read_rows(odd / "s.jsonl")[0].notes == (f"not verified: {odd.parent}/{SHOWN} is gone",)


# ---- files ----


@pytest.mark.parametrize("name", ["ü" * 127, "n" * 255])
def test_names_as_long_as_can_be(tmp_path: Path, name: str) -> None:
    assert atomic_write(tmp_path / name, b"content").read_bytes() == b"content"
    for text in ("first", "second"):
        with atomic_folder(tmp_path / f"f{name[1:]}") as folder:
            (folder / "file").write_text(text)
    assert (tmp_path / f"f{name[1:]}" / "file").read_text() == "second"
    assert len(list(tmp_path.iterdir())) == 2


def test_zip_whose_names_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("öö.png", encoded(PICTURES[0]))
    path.write_bytes(path.read_bytes().replace("öö".encode(), b"\xf6\xf6oo"))
    with pytest.raises(BadInput, match=r"z\.zip is no whole zip archive \('utf-8' codec"):
        open_source(path)


def test_output_of_programs_may_be_any_bytes() -> None:
    assert output_of("printf", r"/\351t\351") == os.fsdecode(b"/\xe9t\xe9")


# ---- commands ----


def test_too_long_a_name_is_one_sentence(lddgan) -> None:
    for command in ("dataset check {}", "sample --bundle {}", "sample --out {}.png --engine torch"):
        outcome = lddgan(*command.format("w" * 300).split())
        assert outcome.code in (1, 2) and "Traceback" not in outcome.err
        assert outcome.err.splitlines()[-1].endswith("File name too long"), outcome.err


def test_terminal_without_the_letters_gets_escapes(tmp_path) -> None:
    (tmp_path / "写真 é").mkdir()
    (tmp_path / "写真 é" / "1.png").write_bytes(encoded(PICTURES[0]))
    command = (sys.executable, "-m", "lddgan", "dataset", "check", "写真 é", "--size", "8")
    env = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=True)
    assert done.stdout.endswith(b"\\u5199\\u771f \xe9: 1 images, 0 bad\n")


def test_sampling_and_checking_at_any_path(lddgan, odd: Path) -> None:
    shutil.copytree(DIGITS, odd / "b")
    (odd / "i").mkdir()
    (odd / "i" / os.fsdecode(b"\xa4.png")).write_bytes(b"")
    checked = lddgan("dataset", "check", odd / "i", "--size", 8)
    assert checked.code == 1 and f"{SHOWN}/i/\\xa4.png is empty\n" in checked.out
    asked = ("--bundle", odd / "b", "--engine", "ort", "--device", "cpu")
    for out in ("x.npz", "many"):
        made = lddgan("sample", *asked, "--num", 2, "--out", odd / out)
        assert made.code == 0 and f"{SHOWN}/{out}: 2 images" in made.out, made.err
    assert sorted(os.listdir(odd / "many")) == ["000000.png", "000001.png", "sampling.json"]
    assert lddgan("verify", "--bundle", odd / "b", "--images", odd / "x.npz").code == 0
    refused = lddgan("sample", "--bundle", odd / "gone")
    assert (
        refused.code == 2 and f"error: there is no bundle at {odd.parent}/{SHOWN}/" in refused.err
    )


@pytest.mark.full
def test_from_images_to_samples_at_any_path(lddgan, odd: Path, monkeypatch) -> None:
    for variable in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(odd / variable))
    write_photos(odd / "p", 32)
    (odd / "p" / os.fsdecode(b"\xff\n.png")).write_bytes(b"")
    monkeypatch.chdir(odd)
    (odd / "exports").mkdir()
    skip = ("--dataset", "digits", "--on-bad", "skip", "--workers", 1)
    trained = ("--autoencoder", odd / "r" / AUTOENCODER)
    lines = (
        ("train-autoencoder", *skip, "--steps", 1, *TINY, "--data", odd / "p", "--out", odd / "r"),
        ("dataset", "encode", odd / "p", *skip, *trained, "--out", odd / "l"),
        ("train", *skip, "--steps", 1, *TINY, *trained, "--data", odd / "p", "--out", odd / "r"),
        ("export", "--checkpoint", odd / "r" / MODEL, "--precision", "fp32"),
        *(("verify", "--engine", engine, "--num", 2) for engine in ("torch", "ort", "openvino")),
        ("sample", "--num", 2),
        ("bench", "--batch", 1, "--trials", 1, "--verify", "--save", "s.jsonl"),
    )
    for line in lines:
        outcome = lddgan(*line)
        assert outcome.code == 0, (line, outcome.err)
        assert "\x1b" not in outcome.out and r"\udc" not in outcome.out + outcome.err
    provenance = open_bundle(Path("exports/digits")).manifest.provenance
    assert provenance["data"].endswith(f"{SHOWN}/p") and SHOWN in provenance["command"]
    assert json.loads((odd / "l" / RECORD).read_bytes())["left_out"] == 1
    assert len(read_rows(Path("s.jsonl"))) == 2
