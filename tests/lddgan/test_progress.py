"""How fast long work is said to be."""

from __future__ import annotations

import pytest

from lddgan.progress import Meter, to_stderr


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


def test_dumb_terminal_gets_plain_lines(monkeypatch, capsys) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Meter("reading", 0, 2, None, unit="images") as meter:
        meter.advance(1)
        meter.advance(1)
    said = capsys.readouterr().err
    assert said.startswith("reading: 2/2 images ") and said.count("\n") == 1 and "\x1b" not in said


def test_lines_of_the_log_name_any_path(capsys) -> None:
    to_stderr("skipped: a\udce9/\x1b[31mb")
    assert capsys.readouterr().err == "skipped: a\\xe9/\\x1b[31mb\n"
