"""How fast long work is said to be."""

from __future__ import annotations

import pytest

from lddgan.progress import Meter


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
