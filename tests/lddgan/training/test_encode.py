"""Encoding a data set: bad images, failing disks, signals, and latents that do not agree."""

from __future__ import annotations

import errno
import json
import os
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

from lddgan.data.images import Read
from lddgan.errors import BadInput, LddganError
from lddgan.training import encode as encoding
from lddgan.training.latents import open_latents
from tests.lddgan.training.stored import (
    COUNT,
    FITTED,
    Pictures,
    close,
    encode,
    everything,
    image_files,
    mirrored,
    reference,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- bad images ----


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_and_told(tmp_path: Path, trained, workers: int) -> None:
    bad = [0, 4, 5, 6, 7, 10]  # the first, all of a batch, the last
    images = image_files(tmp_path / "images", bad)
    said: list[str] = []
    out = tmp_path / "latents"
    changes = {"flip": True, "workers": workers, "on_bad": "skip", "log": said.append}
    assert encode(out, trained, images, **changes) == 5
    stored = open_latents(out, trained)
    good = np.delete(FITTED, bad, axis=0)
    assert close(everything(stored), reference(trained, good))
    assert close(everything(stored, True), reference(trained, mirrored(good)))
    told = [line for line in said if line.startswith("left out: ")]
    assert told == [f"left out: {tmp_path}/images/{index:02d}.png is empty" for index in bad]
    assert json.loads((out / "latents.json").read_text())["left_out"] == 6
    assert (out / "latents.npy").stat().st_size == 128 + 4 * 5 * 2 * 8 * 8 * 8


def test_a_bad_image_stops_unless_it_may_be_left_out(tmp_path: Path, trained) -> None:
    images = image_files(tmp_path / "images", [6])
    with pytest.raises(BadInput, match=r"06\.png is empty; leave it out, or .* --on-bad skip"):
        encode(tmp_path / "latents", trained, images)
    assert os.listdir(tmp_path) == ["images"]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_alone_are_refused(tmp_path: Path, trained, workers: int) -> None:
    images = image_files(tmp_path / "images", range(COUNT))
    with pytest.raises(BadInput, match="all 11 images are bad"):
        encode(tmp_path / "latents", trained, images, on_bad="skip", workers=workers)

    class AllBad(Pictures):
        def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
            return Read(torch.zeros(1, 3, 32, 32), ["it is bad"])

    with pytest.raises(BadInput, match="all 11 images are bad"):
        encode(tmp_path / "latents", trained, AllBad(), on_bad="skip", workers=workers)
    assert os.listdir(tmp_path) == ["images"]


# ---- whole or not at all ----


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_broken_off_encoding_leaves_nothing(tmp_path: Path, trained, error) -> None:
    class Broken(Pictures):
        def happen(self) -> None:
            raise error

    with pytest.raises(error):
        encode(tmp_path / "latents", trained, Broken())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_fails_to_read_is_one_sentence(tmp_path: Path, trained, workers: int) -> None:
    class Unreadable(Pictures):
        def happen(self) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(LddganError, match=r"^reading the images failed: Input/output error$"):
        encode(tmp_path / "latents", trained, Unreadable(), workers=workers)
    assert os.listdir(tmp_path) == []


def test_dying_worker_is_one_sentence(tmp_path: Path, trained) -> None:
    class Dying(Pictures):
        def happen(self) -> None:
            os._exit(3)

    with pytest.raises(LddganError, match=r"reading the images failed: .*worker") as caught:
        encode(tmp_path / "latents", trained, Dying(), workers=1)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


ENDED = """
import os, signal, sys
from pathlib import Path
import torch
from tests.conftest import TINY
from tests.lddgan.training.stored import Pictures, encode
from tests.lddgan.training.support import random_autoencoder

main, number, workers = os.getpid(), int(sys.argv[2]), int(sys.argv[3])
signal.signal(signal.SIGINT, signal.default_int_handler)

class Ended(Pictures):
    def happen(self):
        os.kill(main, number)

torch.set_num_threads(1)
encode(Path(sys.argv[1]), random_autoencoder(TINY), Ended(), batch=1, workers=workers)
"""


def test_signal_ends_encoding_and_leaves_no_folder(tmp_path: Path, trained, files) -> None:
    def command(name: str, number: int, workers: int) -> list[str]:
        arguments = [str(tmp_path / name / "latents"), str(int(number)), str(workers)]
        return [sys.executable, "-c", ENDED, *arguments]

    with subprocess.Popen(command("killed", signal.SIGKILL, 0)) as killed:
        interrupted = subprocess.run(
            command("interrupted", signal.SIGINT, 2), capture_output=True, timeout=60, check=False
        )
    assert killed.returncode == -signal.SIGKILL
    assert b"KeyboardInterrupt" in interrupted.stderr
    assert os.listdir(tmp_path) == ["killed"]
    (left,) = (tmp_path / "killed").glob(".latents.*.tmp")
    assert not (left / "latents.json").exists()
    encode(tmp_path / "killed" / "latents", trained, files)
    assert len(open_latents(tmp_path / "killed" / "latents", trained)) == COUNT
    assert os.listdir(tmp_path / "killed") == ["latents"]


def full(*arguments) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_before_anything_is_encoded(
    tmp_path: Path, trained, files, monkeypatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full)
    said = r"take 2\.27e-05 GB, for which the disk has no room: No space left"
    with pytest.raises(LddganError, match=said):
        encode(tmp_path / "latents", trained, files, log=pytest.fail)
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
    tmp_path: Path, trained, files, monkeypatch, reserves: bool
) -> None:
    def cannot(*arguments) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if not reserves:
        monkeypatch.setattr(os, "posix_fallocate", cannot)
    said = "the disk has no room: File too" if reserves else "cannot write .*latents: File too"
    with pytest.raises(LddganError, match=said) as caught, small_files():
        encode(tmp_path / "latents", trained, files)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, BadInput)
    assert os.listdir(tmp_path) == []


def test_without_reserving_it_is_the_same_file(tmp_path: Path, trained, files, monkeypatch) -> None:
    encode(tmp_path / "one", trained, files)
    monkeypatch.delattr(os, "posix_fallocate")
    encode(tmp_path / "two", trained, files)
    one, two = ((tmp_path / name / "latents.npy").read_bytes() for name in ("one", "two"))
    assert one == two


def test_only_an_empty_folder_is_taken(tmp_path: Path, trained, files) -> None:
    out = tmp_path / "latents"
    out.mkdir()
    encode(out, trained, files)
    before = (out / "latents.json").read_bytes()
    with pytest.raises(BadInput, match=r"latents holds other files \(.*\); choose an empty"):
        encode(out, trained, files)
    assert (out / "latents.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file exists and is not a folder"):
        encode(tmp_path / "file", trained, files)
    with pytest.raises(LddganError, match=r"cannot write .*below: File exists"):
        encode(tmp_path / "file" / "below", trained, files)


def test_images_are_encoded_without_tf32(tmp_path: Path, trained) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    class Looking(Pictures):
        def happen(self) -> None:
            assert not matmul.allow_tf32 and not cudnn.allow_tf32

    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        encode(tmp_path / "latents", trained, Looking())
        assert matmul.allow_tf32 and cudnn.allow_tf32
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


# ---- verification ----


def test_images_that_change_while_they_are_encoded_are_noticed(tmp_path: Path, trained) -> None:
    class Changing(Pictures):
        def happen(self) -> None:
            self.images = self.images * 0.99

    with pytest.raises(LddganError, match=r"encoded twice differ by \d\.\de-0\d of the largest"):
        encode(tmp_path / "latents", trained, Changing())
    assert os.listdir(tmp_path) == []


def test_mirrored_latents_are_verified_with_mirrored_images(tmp_path: Path, trained) -> None:
    class NotMirrored(Pictures):
        def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
            return super().read(index, [False] * len(index))

    encode(tmp_path / "one", trained, NotMirrored())
    with pytest.raises(LddganError, match="encoded twice"):
        encode(tmp_path / "two", trained, NotMirrored(), flip=True)


def test_means_and_log_variances_are_compared_apart() -> None:
    expected = np.concatenate([np.ones((1, 1, 2, 3, 3)), np.full((1, 1, 2, 3, 3), -30.0)], axis=2)
    found = expected.copy()
    found[0, 0, 1, 2, 2] += 1e-3
    assert encoding.difference(found, expected, 2) == pytest.approx(1e-3)
    assert encoding.difference(found, expected, 4) == pytest.approx(1e-3 / 30)


def test_latents_that_are_not_finite_are_refused(tmp_path: Path, trained) -> None:
    class Poisoned(Pictures):
        def __init__(self) -> None:
            super().__init__()
            self.images[9, 1, 4, 4] = float("nan")

    with pytest.raises(LddganError, match="the latent of image 9 is not finite"):
        encode(tmp_path / "latents", trained, Poisoned())
    assert os.listdir(tmp_path) == []
