"""Signals during long work, and in a whole command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lddgan.signals import ENDING, Interrupted, ended_by_signals, hold_signals, stop_signals

ROOT = Path(__file__).resolve().parents[2]

each = pytest.mark.parametrize("number", ENDING)


@each
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


@each
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with ended_by_signals(), stop_signals() as stop:
            signal.raise_signal(number)
            assert stop.asked is None and signal.getsignal(number) is signal.SIG_IGN
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_other_threads_leave_handlers_alone() -> None:
    found = []

    def work() -> None:
        with stop_signals(), ended_by_signals():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


def test_held_signals_come_after_the_block() -> None:
    reached = []

    def work() -> None:
        with hold_signals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["the end"]


# ---- a whole command ----


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends the tests' own process."""
    monkeypatch.setattr("lddgan.signals.exit_later", lambda number: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


@each
@pytest.mark.usefixtures("_patient")
def test_a_signal_tidies_up_and_is_the_exit_code(number: signal.Signals) -> None:
    done = []

    @ended_by_signals()
    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            done.append("tidied")

    with pytest.raises(SystemExit) as stopped:
        work()
    assert stopped.value.code == 128 + number and done == ["tidied"]


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("instead", [None, ImportError("numpy failed")])
def test_an_interrupt_that_a_library_swallows_still_ends(instead: Exception | None) -> None:
    @ended_by_signals()
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            if instead is not None:
                raise instead from None

    with pytest.raises(SystemExit) as stopped:
        work()
    assert stopped.value.code == 143


STUCK = """
import signal, sys, time
from lddgan import signals
signals.GRACE_SECONDS = float(sys.argv[1])

def tidy_up():
    while True:
        time.sleep(0.01)

with signals.ended_by_signals():
    try:
        print("ready", flush=True)
        tidy_up()
    finally:
        print("tidying", flush=True)
        tidy_up()
"""


def stuck(seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STUCK, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def test_second_signal_ends_what_does_not_end() -> None:
    with stuck(1000) as process:
        for said in ("ready\n", "tidying\n"):
            assert process.stdout is not None and process.stdout.readline() == said
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130 and process.stdout.read() == ""


def test_what_does_not_end_after_a_signal_is_ended() -> None:
    with stuck(0.1) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(20) == 129 and process.stdout.read() == "tidying\n"


IMPORTING = """
import signal, sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "cli":
            print("importing", flush=True)
            try:
                time.sleep(60)
            except (KeyboardInterrupt, SystemExit):
                pass  # as libraries do

sys.meta_path.insert(0, Slow())
from lddgan.__main__ import main
main()
"""


@each
def test_a_signal_during_imports_is_quiet(number: signal.Signals) -> None:
    command = [sys.executable, "-c", IMPORTING]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **pipes, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert process.wait(20) == 128 + number and process.stdout.read() == ""
