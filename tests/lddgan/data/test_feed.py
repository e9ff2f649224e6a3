"""Batches for the training: their rows, mirror images, bad images, and the worker processes."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from multiprocessing import resource_sharer
from multiprocessing.connection import Client
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from lddgan.data.feed import Feed, Order, hide_broken_off
from lddgan.data.images import ImageFiles, Images, InMemory, Read
from lddgan.data.open_source import open_source
from lddgan.errors import BadInput, LddganError

COUNT, BATCH, SEED, SIZE = 10, 4, 3, 8
ROWS = [1, 3]  # of each batch
STEPS = 9  # of two a whole epoch is made

both = pytest.mark.parametrize("workers", [0, 2])


@pytest.fixture(autouse=True)
def _end_workers():
    """Workers that a failing test leaves, which ignore SIGTERM, would keep pytest from ending."""
    yield
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()


def numbers() -> Tensor:
    """COUNT images whose values all differ."""
    return torch.arange(COUNT * 3 * 2 * 2, dtype=torch.float32).reshape(COUNT, 3, 2, 2)


def feed_of(images: Images, workers: int, *, flip: bool = False, **changes) -> Feed:
    order = Order(len(images), BATCH, SEED, flip)
    given = {"workers": workers, "on_bad": "stop", "log": lambda line: None} | changes
    return Feed(images, order, torch.tensor(ROWS), **given)


def expected(step: int, flip: bool) -> Tensor:
    """The rows of a step, computed with NumPy."""
    epoch, position = divmod(step, COUNT // BATCH)
    order = np.random.default_rng([SEED, epoch]).permutation(COUNT)
    mirrored = np.random.default_rng([SEED, epoch, 1]).integers(0, 2, COUNT) == 1
    index = order[position * BATCH : (position + 1) * BATCH][ROWS]
    found = numbers()[torch.from_numpy(index)].numpy()
    found = [
        image[..., ::-1] if flip and mirrored[i] else image
        for i, image in zip(index, found, strict=True)
    ]
    return torch.from_numpy(np.stack(found))


# ---- what is read ----


@both
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("first", [0, 5])
def test_each_step_gets_its_rows(workers: int, flip: bool, first: int) -> None:
    found = list(feed_of(InMemory(numbers()), workers, flip=flip).batches(first, STEPS))
    wanted = [expected(step, flip) for step in range(first, STEPS)]
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# ---- bad images ----


def folder(at: Path, bad: Sequence[int]) -> ImageFiles:
    """COUNT images, each of one grey; those of `bad` are empty files."""
    for index in range(COUNT):
        file = io.BytesIO()
        Image.new("RGB", (SIZE, SIZE), (20 * index,) * 3).save(file, "PNG")
        (at / f"{index}.png").write_bytes(b"" if index in bad else file.getvalue())
    return ImageFiles(open_source(at), SIZE)


@both
def test_a_bad_image_stops_the_training_by_its_name(tmp_path: Path, workers: int) -> None:
    feed = feed_of(folder(tmp_path, [2, 9]), workers)
    with pytest.raises(BadInput) as caught:
        list(feed.batches(0, 20))
    said = f"{tmp_path}/{{}}.png is empty; leave it out, or give --on-bad skip"
    assert str(caught.value) in (said.format(2), said.format(9))


@both
def test_bad_image_is_logged_once_and_replaced_by_the_next(tmp_path: Path, workers: int) -> None:
    lines: list[str] = []
    feed = feed_of(folder(tmp_path, [2, 3, 9]), workers, on_bad="skip", log=lines.append)
    order, instead = Order(COUNT, BATCH, SEED, False), {2: 4, 3: 4, 9: 0}
    seen = set()
    for step, batch in enumerate(feed.batches(0, 20)):
        index = order.at(step)[0][ROWS].tolist()
        assert batch[:, 0, 0, 0].tolist() == [20 * instead.get(i, i) for i in index]
        seen |= {bad for i in index for bad in {2: (2, 3), 3: (3,), 9: (9,)}.get(i, ())}
    assert seen == {2, 3, 9}  # or the seed would have to be another
    assert sorted(lines) == [f"skipped: {tmp_path / f'{i}.png'} is empty" for i in (2, 3, 9)]
    assert len(feed.bad) == 3


# ---- what goes wrong while images are read ----


class Failing(InMemory):
    """Fails at the third reading of a process; without an error, the first worker is killed."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(numbers())
        self.error, self.reads = error, 0

    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
        self.reads += 1
        if self.reads == 3 and self.error is not None:
            raise self.error
        if self.reads == 3 and get_worker_info().id == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index, mirrored)


@both
@pytest.mark.parametrize("kind", [BadInput, LddganError])
def test_an_error_arrives_with_its_own_words(workers: int, kind: type[LddganError]) -> None:
    with pytest.raises(LddganError) as caught:
        list(feed_of(Failing(kind("the disk is upside down")), workers).batches(0, STEPS))
    assert type(caught.value) is kind and str(caught.value) == "the disk is upside down"


@both
def test_a_disk_that_fails_is_one_sentence(workers: int) -> None:
    broken = Failing(OSError(errno.EIO, "Input/output error"))
    with pytest.raises((LddganError, OSError)) as caught:
        list(feed_of(broken, workers).batches(0, STEPS))
    said = getattr(caught.value, "strerror", None) or str(caught.value)  # as the command line does
    assert "Input/output error" in said and "\n" not in said


def test_a_worker_that_is_killed_is_one_sentence() -> None:
    with pytest.raises(LddganError, match=r"^reading the images failed: .*worker") as caught:
        list(feed_of(Failing(None), 2).batches(0, STEPS))
    assert not isinstance(caught.value, BadInput) and "\n" not in str(caught.value)


class Handed:
    """Something whose arrival kills the worker that sent it, as the connection breaks."""

    def __init__(self, worker: int) -> None:
        self.worker = worker

    def __reduce__(self) -> tuple[Any, ...]:
        return break_off, (self.worker,)


def break_off(worker: int) -> None:
    Timer(0.1, os.kill, (worker, signal.SIGKILL)).start()
    raise EOFError


class BreakingOff(InMemory):
    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
        return Read(super().read(index, mirrored).values, [Handed(os.getpid())])


def test_worker_killed_while_handing_over_is_one_sentence() -> None:
    with pytest.raises(LddganError, match=r"^reading the images failed: .*killed by signal"):
        list(feed_of(BreakingOff(numbers()), 2).batches(0, STEPS))


class Torn:
    """Something that breaks off as it arrives, although its worker lives."""

    def __reduce__(self) -> tuple[Any, ...]:
        return tear, ()


def tear() -> None:
    raise ConnectionResetError(104, "Connection reset by peer")


class Tearing(InMemory):
    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
        return Read(super().read(index, mirrored).values, [Torn()])


def test_batch_that_breaks_off_as_it_arrives_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lddgan.data.feed.SIGNAL_SECONDS", 0.01)
    with pytest.raises(LddganError, match=r"^reading the images failed: a worker .*Connection re"):
        list(feed_of(Tearing(numbers()), 2).batches(0, STEPS))
    assert multiprocessing.active_children() == []


# ---- the workers ----


def test_workers_leave_signals_to_the_training() -> None:
    with closing(feed_of(InMemory(numbers()), 2).batches(0, 40)) as batches:
        found = [next(batches), next(batches)]  # one of each: both are at work
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid, number)
        found += list(batches)
    assert all(torch.equal(a, expected(step, False)) for step, a in enumerate(found))
    assert len(found) == 40


@pytest.mark.parametrize("message", [b"", b"no digest"])
def test_worker_is_silent_about_batches_that_nobody_takes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], message: bytes
) -> None:
    monkeypatch.setattr(sys, "excepthook", hide_broken_off)
    address, _ = resource_sharer.DupFd(0)._id
    with Client(address) as connection:  # which is to answer a challenge
        if message:
            connection.send_bytes(message)
    resource_sharer.stop(timeout=10)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [ValueError("another matter"), EOFError("another place")])
def test_worker_prints_its_other_errors(
    capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    hide_broken_off(type(error), error, None)
    assert capfd.readouterr().err == f"{type(error).__name__}: {error}\n"


def test_workers_are_gone_when_the_training_stops() -> None:
    with closing(feed_of(InMemory(numbers()), 2).batches(0, 1000)) as batches:
        next(batches)
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    "error",
    [BadInput("bad"), LddganError("no"), OSError(errno.EIO, "broken"), None],
    ids=["bad", "failed", "disk", "killed"],
)
def test_workers_are_gone_after_an_error_that_is_still_held(error: Exception | None) -> None:
    with pytest.raises((LddganError, OSError)) as caught:
        list(feed_of(Failing(error), 2).batches(0, 1000))
    assert multiprocessing.active_children() == [], caught.traceback


def test_workers_are_gone_after_an_error_of_the_training() -> None:
    def train() -> None:
        with closing(feed_of(InMemory(numbers()), 2).batches(0, 1000)) as batches:
            for _ in batches:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        train()
    assert multiprocessing.active_children() == [], caught.traceback
