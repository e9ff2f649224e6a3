"""Signals during long work, and how fast it is said to be."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from lddgan.progress import Meter, start_pool, stop_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert stop.asked is None
        signal.raise_signal(number)
        assert stop.asked == number
    assert signal.getsignal(number) is before


def test_second_interrupt_ends_at_once() -> None:
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_leave_handlers_alone() -> None:
    found = []

    def work() -> None:
        with stop_signals():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pool_ignores_interrupts_from_its_start() -> None:
    before = signal.getsignal(signal.SIGINT)
    with start_pool(1) as pool:
        assert signal.getsignal(signal.SIGINT) is before
        (process,) = pool._processes.values()
        with open(f"/proc/{process.pid}/status") as file:
            ignored = next(line for line in file if line.startswith("SigIgn"))
        assert int(ignored.split()[1], 16) >> (signal.SIGINT - 1) & 1
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


@pytest.mark.parametrize(("seconds", "text"), [(2.0, "5.0 steps/s"), (41.0, "4.1 s/step")])
def test_speed_below_one_is_seconds_per_step(
    monkeypatch: pytest.MonkeyPatch, seconds: float, text: str
) -> None:
    now = [0.0]
    monkeypatch.setattr("lddgan.progress.time.monotonic", lambda: now[0])
    lines: list[str] = []
    with Meter("training", 0, 10, lines.append) as meter:
        now[0] = seconds
        meter.advance(10)
    assert meter.speed == text and text in lines[0] and "0 min 00 s left" in lines[0]
