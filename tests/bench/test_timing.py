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
    run_trial,
    settle,
    summarise,
    take_turns,
    warm_up,
)
from engine.backend import Backend
from engine.sampler import Sampler
from engine.timing import HostTimer
from lddgan.errors import LddganError, OutOfMemory
from lddgan.presets import get_preset
from tests.bench.scripted import Clock, Fused, Scripted, opened

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


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.run.gpu_memory_mib", lambda device: None)
    monkeypatch.setattr("bench.run.gpu_at_work", lambda sampler, plan: None)


def test_summary_is_percentiles_mean_and_population_deviation() -> None:
    found = summarise([float(n) for n in range(101)])
    assert (found.p50, found.p90, found.p99, found.mean) == (50, 90, 99, 50)
    assert found.std == pytest.approx((101**2 - 1) ** 0.5 / 12**0.5)
    assert summarise([7.0]).model_dump() == {"p50": 7, "p90": 7, "p99": 7, "mean": 7, "std": 0}
    assert summarise([1.0, 2.0]).p90 == pytest.approx(1.9)


def test_a_trial_sums_its_chunks_by_stage(clock: Clock) -> None:
    calls: list[Any] = []
    trial, images = run_trial(opened(fast(clock, calls), PRESET, chunk=3), seed=0, batch=7)
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
    trial, images = run_trial(opened(backend, PRESET, chunk=3), seed=0, batch=7)
    assert [count for _, what, count in calls if what == "launch"] == [3, 2, 2]
    assert [count for _, what, count in calls if what == "decode"] == [3, 2, 2]
    assert trial.whole == pytest.approx(7 * 5)
    assert trial.download == pytest.approx(2 * 3 * 100)  # latents and images of three chunks
    assert trial.end_to_end == pytest.approx(7 * 5 + 600)
    assert (trial.noise, trial.generator, trial.decoder) == pytest.approx((7 * 3, 7 * 4, 7 * 2))
    # Each chunk was downloaded before the next launch overwrote it.
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(7))


def test_the_warm_up_estimates_a_trial(clock: Clock) -> None:
    sampler = opened(fast(clock), PRESET, 3)
    assert warm_up(sampler, Plan("cpu", 7, 1, 0, NONE), print, clock) == pytest.approx(7 * 0.14)
    sampler = opened(Fused(clock, [], launch=0.005, download=0.1), PRESET, 127)
    # The launch, two downloads, and the stages that are run apart from it.
    expected = 50 * 0.005 + 2 * 0.1 + 50 * (0.003 + 4 * 0.001 + 0.002)
    plan = Plan("cuda", 50, 1, 0, NONE)
    assert warm_up(sampler, plan, print, clock) == pytest.approx(expected)


def test_nan_of_a_launch_is_an_error(clock: Clock) -> None:
    backend = Fused(clock, [], launch=0.005, download=0)
    backend.poison = True
    with pytest.raises(LddganError, match="fused fp32 on a script gave NaN or Inf"):
        run_trial(opened(backend, PRESET, chunk=3), seed=0, batch=1)


@pytest.mark.parametrize("fused", [True, False])
def test_nan_of_the_decoder_is_an_error(clock: Clock, fused: bool) -> None:
    backend = Fused(clock, [], launch=0.005, download=0) if fused else fast(clock)
    backend.blank = True
    with pytest.raises(LddganError, match="gave an image of one value"):
        run_trial(opened(backend, PRESET, chunk=3), seed=0, batch=4)


def test_too_little_memory_ends_a_trial(clock: Clock) -> None:
    class Small(Fused):
        def run(self, program: Any, preset: Any, seed: int, first: int, count: int) -> Any:
            self.calls.append((self.name, "launch", count))
            raise OutOfMemory("the GPU is full")

    calls: list[Any] = []
    with pytest.raises(OutOfMemory, match="the GPU is full"):
        run_trial(opened(Small(clock, calls, 0.005, 0), PRESET, chunk=4), seed=0, batch=4)
    assert calls == [("fused", "launch", 4)]


class Small(Scripted):
    """A device whose memory holds three images."""

    def decode(self, x_0: Any) -> Any:
        if len(x_0) > 3:
            raise OutOfMemory(f"no memory for {len(x_0)} images")
        return super().decode(x_0)


def small(clock: Clock, calls: list[Any]) -> Small:
    return Small("small", clock, calls, STEP, DECODE)


def test_too_little_memory_in_the_warm_up_halves_the_chunk(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch)
    calls: list[Any] = []
    log: list[str] = []
    sampler = opened(small(clock, calls), PRESET, chunk=127)
    sides, _ = measure([lambda: sampler], Plan("cuda", 10, 2, 0, NONE), log.append, clock=clock)
    assert sampler.chunk == 2  # 10, 5, 2
    assert [line for line in log if "memory" in line] == [
        "no memory for 10 images; measured with 5 images at once instead of 10",
        "no memory for 5 images; measured with 2 images at once instead of 5",
    ]
    assert [len(side.trials) for side in sides] == [2]
    decoded = [count for _, what, count in calls if what == "decode"]
    assert decoded[-2 * 5 - 3 :] == [2] * (3 + 2 * 5)  # three to warm up, two trials of five chunks


def test_too_little_memory_for_the_least_chunk_is_an_error(clock: Clock) -> None:
    backend = small(clock, [])
    backend.least = 4
    with pytest.raises(OutOfMemory, match="no memory for 5 images"):
        warm_up(opened(backend, PRESET, 10), Plan("cpu", 10, 2, 0, NONE), print, clock)


def test_nan_is_an_error(clock: Clock) -> None:
    backend = fast(clock)
    backend.poison = True
    with pytest.raises(LddganError, match="NaN or Inf"):
        run_trial(opened(backend, PRESET, chunk=3), seed=0, batch=1)


def test_warm_up_runs_every_stage_of_every_chunk_size(clock: Clock) -> None:
    calls: list[Any] = []
    warm_up(opened(fast(clock, calls), PRESET, chunk=3), Plan("cuda", 7, 1, 0, NONE), print, clock)
    for stage, each in (("step", 4), ("decode", 1)):
        sizes = [count for _, what, count in calls if what == stage]
        assert sizes == [3] * 3 * each + [2] * 3 * each


def both(clock: Clock, calls: list[Any], chunk: int) -> list[Sampler]:
    return [opened(make(clock, calls), PRESET, chunk) for make in (fast, slow)]


def test_turns_alternate_and_hear_of_progress(clock: Clock) -> None:
    calls: list[Any] = []
    heard: list[tuple[int, int]] = []
    plan, budget = Plan("cpu", 4, 3, 0, NONE), Budget(NONE, clock)
    first, other = take_turns(both(clock, calls, 4), plan, budget, lambda *n: heard.append(n))
    assert [name for name, what, _ in calls if what == "decode"] == ["fast", "slow"] * 3
    assert (len(first.trials), len(other.trials)) == (3, 3)
    assert other.trials[0].whole == pytest.approx(3 * first.trials[0].whole)
    assert (len(first.images), len(other.images)) == (4, 4)
    assert heard == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("limit", "done"),
    [(NONE, 5), (100.0, 5), (3 * 2.24 + 0.01, 3), (3 * 2.24 - 0.01, 2), (0.5, 1), (0.0, 1)],
)
def test_the_limit_cuts_trials_but_not_the_batch(clock: Clock, limit: float, done: int) -> None:
    calls: list[Any] = []
    budget = Budget(limit, clock)  # one turn of batch 4 takes 4 x 0.14 x (1 + 3) = 2.24 s
    sides = take_turns(both(clock, calls, 3), Plan("cpu", 4, 5, 0, limit), budget)
    assert [len(side.trials) for side in sides] == [done, done]
    for name in ("fast", "slow"):
        assert [n for who, what, n in calls if (who, what) == (name, "decode")] == [2, 2] * done


def test_no_turn_starts_that_the_slowest_says_would_not_fit(clock: Clock) -> None:
    backend = fast(clock)

    def slower(_done: int, _asked: int) -> None:
        backend.step_seconds, backend.decode_seconds = 2 * STEP, 2 * DECODE

    # 0.56 s, then 1.12 s: a third would end at 2.8 s.
    plan, budget = Plan("cpu", 4, 9, 0, 2.7), Budget(2.7, clock)
    (side,) = take_turns([opened(backend, PRESET, 4)], plan, budget, slower)
    assert len(side.trials) == 2


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (NONE, "about 3 s per trial of 20 images; trials: 5"),
        (1000.0, "about 3 s per trial of 20 images; trials: 5"),
        (10.0, "about 3 s per trial of 20 images; trials: 3 of 5, in what is left of 10 s"),
        (2.0, "about 3 s per trial of 20 images; trials: 1 of 5, in what is left of 2 s"),
    ],
)
def test_estimate(clock: Clock, limit: float, said: str) -> None:
    assert estimate(Plan("cpu", 20, 5, 0, limit), 3.0, Budget(limit, clock)) == said


def test_the_engine_is_warm_before_the_baseline_is_opened(clock: Clock) -> None:
    calls: list[Any] = []
    log: list[str] = []

    def opener(make: Any) -> Any:
        def open_it() -> Sampler:
            clock.now += 4  # of the engine not counted
            calls.append(("open", make.__name__, 0))
            return opened(make(clock, calls), PRESET, 3)

        return open_it

    plan = Plan("cpu", 4, 300, 0, 29.0)
    sides, _ = measure([opener(fast), opener(slow)], plan, log.append, clock=clock)
    # Of 29 s the two warm-ups of two images took 4 x 0.28 s, the opening of the baseline 4 s.
    assert log == ["about 2.2 s per trial of 4 images; trials: 10 of 300, in what is left of 29 s"]
    first, second = (calls.index(("open", name, 0)) for name in ("fast", "slow"))
    assert first == 0 and {count for _, _, count in calls[1:second]} == {2}
    assert [len(side.trials) for side in sides] == [10, 10]
    assert clock.now - 104 <= 29


def test_memory_is_read_when_each_is_warm(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([1000.0, 1500.0])
    without_gpu(monkeypatch)
    monkeypatch.setattr("bench.run.gpu_memory_mib", lambda device: next(asked))
    samplers = both(clock, [], 3)
    openers = [lambda: samplers[0], lambda: samplers[1]]
    sides, _ = measure(openers, Plan("cuda", 4, 5, 0, NONE), print, clock=clock)
    assert len(sides[0].trials) == 5
    assert [side.gpu_memory_mib for side in sides] == [1000, 1500]


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

    samplers = [opened(Recording(name, clock, [], STEP, DECODE), PRESET, 4) for name in "ab"]
    take_turns(samplers, Plan("cpu", 4, 1, 5, NONE), Budget(NONE, clock))
    np.testing.assert_array_equal(seen[0], seen[1])
