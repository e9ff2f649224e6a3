"""Stages, warm-up, turns and the limit, on a scripted clock."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import numpy as np
import pytest

from bench.run import estimate, measure
from bench.timing import (
    Budget,
    Plan,
    chunks_of,
    run_trial,
    settle,
    summarise,
    take_turns,
    trial_seconds,
    warm_up,
)
from engine.backend import Backend
from engine.timing import HostTimer
from lddgan.errors import LddganError, OutOfMemory
from lddgan.presets import get_preset
from tests.bench.scripted import Clock, Fused, Scripted, side

PRESET = get_preset("digits")  # T = 4
STEP, DECODE = 0.010, 0.100  # seconds an image; 0.14 for a whole one
NONE = float("inf")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fast(clock: Clock, calls: list[Any] | None = None) -> Scripted:
    return Scripted("fast", clock, [] if calls is None else calls, STEP, DECODE)


def slow(clock: Clock, calls: list[Any] | None = None) -> Scripted:
    return Scripted("slow", clock, [] if calls is None else calls, 3 * STEP, 3 * DECODE)


def quiet(_done: int, _asked: int) -> None: ...


def test_summary_is_percentiles_mean_and_population_deviation() -> None:
    found = summarise([float(n) for n in range(101)])
    assert (found.p50, found.p90, found.p99, found.mean) == (50, 90, 99, 50)
    assert found.std == pytest.approx((101**2 - 1) ** 0.5 / 12**0.5)
    assert summarise([7.0]).model_dump() == {"p50": 7, "p90": 7, "p99": 7, "mean": 7, "std": 0}
    assert summarise([1.0, 2.0]).p90 == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("batch", "chunk", "parts"),
    [
        (1, 4, [(0, 1)]),
        (4, 4, [(0, 4)]),
        (7, 3, [(0, 3), (3, 2), (5, 2)]),
        (100, 32, [(0, 25), (25, 25), (50, 25), (75, 25)]),
        (100, 127, [(0, 100)]),
    ],
)
def test_chunks_cover_the_batch_in_equal_parts(
    batch: int, chunk: int, parts: list[tuple[int, int]]
) -> None:
    assert chunks_of(batch, chunk) == parts


def test_a_trial_sums_its_chunks_by_stage(clock: Clock) -> None:
    calls: list[Any] = []
    trial, images = run_trial(side(fast(clock, calls), PRESET, chunk=3), seed=0, batch=7)
    assert images.shape == (7, 32, 32, 3)
    assert [count for _, what, count in calls if what == "decode"] == [3, 2, 2]
    assert trial.generator == pytest.approx(4 * 7 * 10)
    assert trial.decoder == pytest.approx(7 * 100)
    assert trial.whole == pytest.approx(980)
    assert trial.end_to_end == pytest.approx(980)  # the script's noise and download take no time
    assert (trial.noise, trial.download) == (0, 0)


def test_one_launch_is_the_whole_and_its_stages_are_timed_apart(clock: Clock) -> None:
    calls: list[Any] = []
    backend = Fused(clock, calls, launch=0.005, download=0.1)
    trial, images = run_trial(side(backend, PRESET, chunk=3), seed=0, batch=7)
    assert [count for _, what, count in calls if what == "launch"] == [3, 2, 2]
    assert [count for _, what, count in calls if what == "decode"] == [3, 2, 2]
    assert trial.whole == pytest.approx(7 * 5)
    assert trial.download == pytest.approx(2 * 3 * 100)  # latents and images of three chunks
    assert trial.end_to_end == pytest.approx(7 * 5 + 600)
    assert (trial.noise, trial.generator, trial.decoder) == pytest.approx((7 * 3, 7 * 4, 7 * 2))
    # Each chunk was downloaded before the next launch overwrote it.
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(7))


def test_a_trial_is_estimated_from_one_image_on_a_cpu(
    clock: Clock,
) -> None:
    calls: list[Any] = []
    assert trial_seconds(
        side(fast(clock, calls), PRESET, 127), Plan("cpu", 50, 1, 0, NONE)
    ) == pytest.approx(50 * 0.14)
    assert {count for _, _, count in calls} == {1}
    calls = []
    opened = side(Fused(clock, calls, launch=0.005, download=0.1), PRESET, 127)
    # The launch, two downloads, and the stages that are run apart from it.
    expected = 50 * 0.005 + 2 * 0.1 + 50 * (0.003 + 4 * 0.001 + 0.002)
    assert trial_seconds(opened, Plan("cuda", 50, 1, 0, NONE)) == pytest.approx(expected)
    assert {count for _, _, count in calls} == {50}


def test_nan_of_a_launch_is_an_error(clock: Clock) -> None:
    backend = Fused(clock, [], launch=0.005, download=0)
    backend.poison = True
    with pytest.raises(LddganError, match="fused fp32 on a script gave NaN or Inf"):
        run_trial(side(backend, PRESET, chunk=3), seed=0, batch=1)


@pytest.mark.parametrize("fused", [True, False])
def test_nan_of_the_decoder_is_an_error(clock: Clock, fused: bool) -> None:
    backend = Fused(clock, [], launch=0.005, download=0) if fused else fast(clock)
    backend.blank = True
    with pytest.raises(LddganError, match="gave an image of one value"):
        run_trial(side(backend, PRESET, chunk=3), seed=0, batch=4)


def test_too_little_memory_ends_a_trial(clock: Clock) -> None:
    class Small(Fused):
        def run(self, program: Any, preset: Any, seed: int, first: int, count: int) -> Any:
            self.calls.append((self.name, "launch", count))
            raise OutOfMemory("the GPU is full")

    calls: list[Any] = []
    with pytest.raises(OutOfMemory, match="the GPU is full"):
        run_trial(side(Small(clock, calls, 0.005, 0), PRESET, chunk=4), seed=0, batch=4)
    assert calls == [("fused", "launch", 4)]


class Small(Scripted):
    """A device whose memory holds three images."""

    def decode(self, x_0: Any) -> Any:
        if len(x_0) > 3:
            raise OutOfMemory(f"no memory for {len(x_0)} images")
        return super().decode(x_0)


def small(clock: Clock, calls: list[Any]) -> Small:
    return Small("small", clock, calls, STEP, DECODE)


@pytest.mark.parametrize("limit", [NONE, 1000.0])
def test_too_little_memory_in_the_warm_up_halves_the_chunk(
    clock: Clock, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.run.gpu_memory_mib", lambda device: None)
    calls: list[Any] = []
    log: list[str] = []
    opened = side(small(clock, calls), PRESET, chunk=127)
    plan = Plan("cuda", 10, 2, 0, limit)
    found = measure(lambda: opened, None, plan, log.append, quiet, clock)
    assert opened.sampler.chunk == 2  # 10, 5, 2
    assert [line for line in log if "memory" in line] == [
        "no memory for 10 images; measured with 5 images at once instead of 10",
        "no memory for 5 images; measured with 2 images at once instead of 5",
    ]
    assert [len(trials) for trials in found.turns.trials] == [2]
    decoded = [count for _, what, count in calls if what == "decode"]
    assert decoded[-2 * 5 - 3 :] == [2] * (3 + 2 * 5)  # three to warm up, two trials of five chunks


def test_too_little_memory_for_the_least_chunk_is_an_error(clock: Clock) -> None:
    backend = small(clock, [])
    backend.least = 4
    plan = Plan("cpu", 10, 2, 0, NONE)
    with pytest.raises(OutOfMemory, match="no memory for 5 images"):
        measure(lambda: side(backend, PRESET, 10), None, plan, lambda _: None, quiet, clock)


def test_nan_is_an_error(clock: Clock) -> None:
    backend = fast(clock)
    backend.poison = True
    with pytest.raises(LddganError, match="NaN or Inf"):
        run_trial(side(backend, PRESET, chunk=3), seed=0, batch=1)


def test_warm_up_runs_every_stage_of_every_chunk_size(clock: Clock) -> None:
    calls: list[Any] = []
    warm_up(side(fast(clock, calls), PRESET, chunk=3), Plan("cuda", 7, 1, 0, NONE))
    for stage, each in (("step", 4), ("decode", 1)):
        sizes = [count for _, what, count in calls if what == stage]
        assert sizes == [2] * 3 * each + [3] * 3 * each


def test_turns_alternate_and_hear_of_progress(clock: Clock) -> None:
    calls: list[Any] = []
    heard: list[tuple[int, int]] = []
    sides = [side(make(clock, calls), PRESET, 4) for make in (fast, slow)]
    turns = take_turns(sides, 0, 4, 3, Budget(NONE, clock), lambda *n: heard.append(n))
    assert [name for name, what, _ in calls if what == "decode"] == ["fast", "slow"] * 3
    assert [len(trials) for trials in turns.trials] == [3, 3]
    assert turns.trials[1][0].whole == pytest.approx(3 * turns.trials[0][0].whole)
    assert [len(images) for images in turns.images] == [4, 4]
    assert heard == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("limit", "done"),
    [(NONE, 5), (100.0, 5), (3 * 2.24 + 0.01, 3), (3 * 2.24 - 0.01, 2), (0.5, 1), (0.0, 1)],
)
def test_the_limit_cuts_trials_but_not_the_batch(clock: Clock, limit: float, done: int) -> None:
    calls: list[Any] = []
    sides = [side(make(clock, calls), PRESET, 3) for make in (fast, slow)]
    budget = Budget(limit, clock)  # one turn of batch 4 takes 4 x 0.14 x (1 + 3) = 2.24 s
    turns = take_turns(sides, 0, 4, 5, budget, quiet)
    assert [len(trials) for trials in turns.trials] == [done, done]
    for name in ("fast", "slow"):
        assert [n for who, what, n in calls if (who, what) == (name, "decode")] == [2, 2] * done


def test_no_turn_starts_that_the_slowest_says_would_not_fit(clock: Clock) -> None:
    backend = fast(clock)
    first = side(backend, PRESET, 4)

    def slower(_done: int, _asked: int) -> None:
        backend.step_seconds, backend.decode_seconds = 2 * STEP, 2 * DECODE

    # 0.56 s, then 1.12 s: a third would end at 2.8 s.
    turns = take_turns([first], 0, 4, 9, Budget(2.7, clock), slower)
    assert len(turns.trials[0]) == 2


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (1000.0, "about 3 s per trial of 20 images, 5 of 5 fit in what is left of 1000 s"),
        (10.0, "about 3 s per trial of 20 images, 3 of 5 fit in what is left of 10 s"),
        (
            2.0,
            "about 3 s per trial of 20 images, not one fits in what is left of 2 s, "
            "so one is run all the same",
        ),
    ],
)
def test_estimate(clock: Clock, limit: float, said: str) -> None:
    assert estimate(Plan("cpu", 20, 5, 0, limit), 3.0, Budget(limit, clock)) == said


def test_the_limit_counts_from_the_first_image(clock: Clock) -> None:
    budget = Budget(10.0, clock)
    clock.now += 4
    assert (budget.elapsed, budget.left, budget.turns(2.0, 9)) == (4, 6, 3)


def measured(clock: Clock, plan: Plan, log: list[str]) -> tuple[list[Any], Any]:
    calls: list[Any] = []

    def opener(make: Any) -> Any:
        def open_side() -> Any:
            calls.append(("open", make.__name__, len(log)))
            return side(make(clock, calls), PRESET, 3)

        return open_side

    found = measure(opener(fast), opener(slow), plan, log.append, quiet, clock)
    return calls, found


def test_the_engine_is_warm_before_the_baseline_is_opened(clock: Clock) -> None:
    log: list[str] = []
    calls, found = measured(clock, Plan("cpu", 4, 300, 0, 29.0), log)
    assert log[0] == "fast fp32 on a script: about 0.56 s per trial"
    # The two of one image and the warm-up of two come first: 0.56 s, then 0.84 s of baseline.
    assert log[1] == (
        "with the PyTorch baseline: about 2.2 s per trial of 4 images, "
        "12 of 300 fit in what is left of 29 s"
    )
    opened = calls.index(("open", "slow", 1))
    assert {count for _, _, count in calls[1:opened]} == {1, 2}
    assert [len(trials) for trials in found.turns.trials] == [11, 11]  # a warm-up later
    assert clock.now - 100 <= 29


def test_without_a_limit_nothing_is_estimated(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter([1000.0, 1500.0])
    monkeypatch.setattr("bench.run.gpu_memory_mib", lambda device: next(asked))
    log: list[str] = []
    _, found = measured(clock, Plan("cuda", 4, 5, 0, NONE), log)
    assert log == []
    assert len(found.turns.trials[0]) == 5
    assert [one.gpu_memory_mib for one in found.opened] == [1000, 1500]


def test_settling_waits_for_busy_threads() -> None:
    until = time.perf_counter() + 0.2

    def spin() -> None:
        while time.perf_counter() < until:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    settle()
    assert not thread.is_alive()


def test_settling_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.timing.MAX_REST_SECONDS", 0.05)
    monkeypatch.setattr("time.process_time", itertools.count().__next__)  # never at rest
    settle()


def test_a_backend_without_a_clock_is_timed_by_the_hosts(clock: Clock) -> None:
    assert isinstance(Backend.timer(fast(clock)), HostTimer)


def test_the_same_noise_goes_to_both(clock: Clock) -> None:
    seen: list[Any] = []

    class Recording(Scripted):
        def decode(self, x_0: Any) -> Any:
            seen.append(x_0)
            return super().decode(x_0)

    sides = [
        side(Recording(n, clock, [], STEP, DECODE), PRESET, c) for n, c in (("a", 4), ("b", 4))
    ]
    take_turns(sides, 5, 4, 1, Budget(NONE, clock), quiet)
    np.testing.assert_array_equal(seen[0], seen[1])
