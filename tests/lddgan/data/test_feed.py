"""Batches for the training: their rows, mirror images, bad images, and the worker processes."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lddgan.data.feed import Feed, Order
from lddgan.data.images import ImageFiles, Images, InMemory, Read
from lddgan.data.open_source import open_source
from lddgan.errors import BadInput, LddganError, OutOfMemory

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
        if self.reads == 3 and multiprocessing.current_process().name == "reader-0":
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


class Stopped(InMemory):
    """Sends a result that is larger than a pipe holds, and is killed while nobody takes it."""

    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
        Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return Read(torch.zeros(1 << 20), [])


def test_worker_killed_while_it_hands_over_is_one_sentence() -> None:
    with pytest.raises(LddganError, match=r"a worker process was killed by signal 9; .*--workers$"):
        [time.sleep(0.4) for _ in feed_of(Stopped(numbers()), 2).batches(0, STEPS)]


def test_a_bug_in_a_worker_ends_the_training(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LddganError, match=r"^reading the images failed: .* ended with exit code 1"):
        list(feed_of(Failing(ZeroDivisionError("a bug")), 2).batches(0, STEPS))
    assert "ZeroDivisionError: a bug" in capfd.readouterr().err


@both
def test_too_little_memory_of_a_worker_is_one_sentence(workers: int) -> None:
    full = Failing(MemoryError("Unable to allocate 9 GiB"))
    with pytest.raises(OutOfMemory, match=r"the CPU has too little memory; use fewer --workers$"):
        list(feed_of(full, workers).batches(0, STEPS))


# ---- the workers ----


def test_workers_leave_signals_to_the_training() -> None:
    with closing(feed_of(InMemory(numbers()), 2).batches(0, 400)) as batches:
        found = [next(batches), next(batches)]  # one of each: both are at work, and not done
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(worker.pid, number)
        found += list(batches)
    assert all(torch.equal(a, expected(step, False)) for step, a in enumerate(found))
    assert len(found) == 400


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


def test_batches_take_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("_share_fd_cpu_", "_share_filename_cpu_", "_new_shared"):
        monkeypatch.setattr(torch.UntypedStorage, name, full)
    monkeypatch.setattr("_multiprocessing.SemLock", full)
    with closing(feed_of(InMemory(numbers()), 2).batches(0, 40)) as batches:
        held, opened = [next(batches)], open_files()
        held += [next(batches) for _ in range(30)]
        assert open_files() == opened
    assert all(torch.equal(a, expected(step, False)) for step, a in enumerate(held))


class Counting(InMemory):
    """Counts in a file how often it is read."""

    def __init__(self, file: Path) -> None:
        super().__init__(torch.zeros(COUNT, 3, 128, 128))
        self.file = file

    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
        with self.file.open("ab") as file:
            file.write(b"x")
        return super().read(index, mirrored)


def test_workers_read_one_batch_ahead_each(tmp_path: Path) -> None:
    file = tmp_path / "reads"
    with closing(feed_of(Counting(file), 2).batches(0, 1000)) as batches:
        for taken in range(1, 6):
            next(batches)
            time.sleep(0.1)  # in which they would read more
            assert file.stat().st_size <= taken + 2


def test_workers_end_when_nobody_reads_any_more(tmp_path: Path) -> None:
    with closing(feed_of(Counting(tmp_path / "reads"), 2).batches(0, 1000)) as batches:
        next(batches)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        # To them a closed pipe is a training that is no more.
        for pipe in batches.gi_frame.f_locals["reads"].gi_frame.f_locals["workers"]:
            pipe[1].close()
        for worker in workers:
            worker.join(20)
            assert worker.exitcode == 0


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
