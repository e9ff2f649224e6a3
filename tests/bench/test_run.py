"""Where a run takes place, and the state of a GPU at work."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bench.run import gpu_at_work, measure, usable_device
from bench.timing import Plan
from engine.sampler import Sampler
from lddgan.errors import LddganError
from lddgan.presets import get_preset
from tests.bench.scripted import Clock, Scripted, opened

PRESET = get_preset("digits")  # T = 4
RUN = PRESET.steps + 1  # calls of a backend
PATIENCE = 30.0  # seconds


@pytest.fixture
def calls() -> list[Any]:
    return []


@pytest.fixture
def worker(calls: list[Any]) -> Sampler:
    return opened(Scripted("one", Clock(), calls, 0.01, 0.1), PRESET, chunk=4)


def test_the_gpu_is_asked_while_the_engine_runs(
    worker: Sampler, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> str:
        before, end = len(calls), time.monotonic() + PATIENCE
        while len(calls) < before + 2 * RUN:
            assert time.monotonic() < end, "the engine rests"
            time.sleep(0.001)
        return "at work"

    monkeypatch.setattr("bench.run.POWER_SECONDS", 0.01)
    monkeypatch.setattr("bench.run.gpu", asked)
    assert gpu_at_work(worker, Plan("cuda", 4, 1, 0, 1.0)) == "at work"


def test_it_is_asked_once_when_all_is_warm_and_no_trial_counts(
    worker: Sampler, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[Sampler, int]] = []

    def asked(sampler: Sampler, plan: Plan) -> None:
        runs.append((sampler, len(calls) // RUN))

    monkeypatch.setattr("bench.run.gpu_memory_mib", lambda device: None)
    monkeypatch.setattr("bench.run.gpu_at_work", asked)
    other = opened(Scripted("other", Clock(), calls, 0.01, 0.1), PRESET, chunk=4)
    plan = Plan("cuda", 4, 3, 0, float("inf"))
    sides, _ = measure([lambda: worker, lambda: other], plan, lambda _: None)
    assert runs == [(worker, 6)]  # three to warm up each
    assert [len(side.trials) for side in sides] == [3, 3]


def test_a_gpu_that_was_asked_for_and_cannot_be_used_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.run.why_no_baseline", lambda device: None)
    assert (usable_device("auto"), usable_device("cpu")) == ("cuda", "cpu")
    monkeypatch.setattr("bench.run.why_no_baseline", lambda device: "no NVIDIA GPU")
    assert (usable_device("auto"), usable_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(LddganError, match="no NVIDIA GPU"):
        usable_device("cuda")
