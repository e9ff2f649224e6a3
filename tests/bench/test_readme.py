"""The README shows what was measured."""

from __future__ import annotations

from pathlib import Path

from bench.report import main

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_speed_table_is_printed_from_the_rows() -> None:
    assert main([str(README), "--check"]) == 0
