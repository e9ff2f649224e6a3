"""Noise drawn ahead is the noise that was asked for, and is drawn in another thread."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from engine import sampler
from engine.registry import open_engine
from engine.sampler import NoiseAhead
from lddgan.noise import Noise, sampler_noise
from tests.conftest import TINY

SEED = 11


def alone(first: int, count: int) -> Noise:
    return sampler_noise(SEED, first, count, latent_shape=(4, 8, 8), nz=10, steps=3)


Drawn = list[tuple[str, int, int]]  # thread, first, count


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What was drawn, and where."""
    seen: Drawn = []
    draw = sampler.draw

    def noted(preset, first: int, count: int, *, seed: int) -> Noise:
        seen.append((threading.current_thread().name.partition("_")[0], first, count))
        return draw(preset, first, count, seed=seed)

    monkeypatch.setattr(sampler, "draw", noted)
    return seen


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("noise")]


@pytest.mark.parametrize(
    ("asked", "in_thread"),
    [
        ([(5, 3), (8, 3), (11, 3)], [(8, 3), (11, 3)]),
        ([(5, 3), (8, 2), (10, 4)], [(8, 3), (10, 2)]),  # part of what is there, then more than it
        ([(5, 4), (5, 2), (7, 2), (9, 5)], [(9, 4), (7, 2), (9, 2)]),  # a chunk that was halved
        ([(5, 9)], []),
    ],
)
def test_noise_is_that_of_each_image(
    drawn: Drawn, asked: list[tuple[int, int]], in_thread: list[tuple[int, int]]
) -> None:
    with NoiseAhead(TINY, SEED, end=14) as ahead:
        for first, count in asked:
            for found, true in zip(ahead.take(first, count), alone(first, count), strict=True):
                assert np.array_equal(found, true)
        ahead.thread.shutdown()  # what is begun is drawn
        assert [(first, count) for thread, first, count in drawn if thread == "noise"] == in_thread
    assert not threads()


def test_an_error_in_the_thread_is_raised_by_take(
    monkeypatch: pytest.MonkeyPatch, drawn: Drawn
) -> None:
    with NoiseAhead(TINY, SEED, end=4) as ahead:
        ahead.take(0, 2)
        ahead.take(2, 2)  # what is ahead is drawn
        monkeypatch.setattr(sampler, "draw", lambda *_, **__: 1 / 0)
        ahead.end = 8
        with pytest.raises(ZeroDivisionError):
            ahead.take(4, 2)


def test_sampling_draws_ahead_through_chunks_and_batches(tiny_bundle: Path, drawn: Drawn) -> None:
    sampler = open_engine(tiny_bundle, "ort", device="cpu", chunk=2)
    images = sampler.sample(7, seed=SEED, batch=4)
    assert [first for thread, first, _ in drawn if thread == "noise"] == [2, 4, 6]
    assert [first for thread, first, _ in drawn if thread != "noise"] == [0]
    assert np.array_equal(images, sampler.run(*alone(0, 7)))
    assert not threads()


def test_images_that_are_not_wanted_leave_no_thread(tiny_bundle: Path) -> None:
    batches = open_engine(tiny_bundle, "ort", device="cpu").stream(10**9, batch=2)
    next(batches)
    assert len(threads()) == 1
    batches.close()
    assert not threads()
