"""Training in processes of its own: killed workers, signals, several ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pytest

from lddgan.checkpoint import load_autoencoder
from lddgan.training.state import load_state
from tests import test_cli
from tests.lddgan.runs import (
    AUTOENCODER,
    FOR_AUTOENCODER,
    MODEL,
    NO_LPIPS,
    RUN,
    TINY,
    equal,
    generator_of,
    options,
    sampled,
    write_photos,
)
from tests.test_cli import ROOT

lddgan = test_cli.lddgan  # the fixture

pytestmark = pytest.mark.usefixtures("one_thread")


KILLED = """
import os, signal
import cli
from multiprocessing import current_process
from lddgan.data import images
fit = images.fit

def killed(pixels, size):
    if current_process().name == "reader-0":
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
    common = (*FOR_AUTOENCODER, "--data", photos, "--workers", 2, "--steps", 100)
    with Process(tmp_path, "-c", KILLED, *common) as process:
        ended = process.end(60)
        assert ended.code == 1 and "error: reading the images failed: " in ended.err
        assert "Traceback" not in ended.err and process.is_gone()


alone = ("-m", "cli")
ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "cli")


@pytest.mark.full
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
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
    given = ("--autoencoder", files / AUTOENCODER)
    common = ("train", "--dataset", "digits", "--data", photos, *given, "--steps", 80)
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
    assert load_state(cut / f"{stage}.state.pt")["step"] == 3
