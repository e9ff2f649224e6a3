"""A new engine is one file and one line: everything else finds it in the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cli
from bench.ladder import Workshop, rungs_of
from bench.plot import colour, ladder_figure
from engine import registry
from engine.registry import open_engine
from export.bundle import open_bundle
from tests.bench.rows import row


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.ENGINES, "toy", "tests.engine.toy:ENGINE")  # the line


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_it_is_opened_by_name_and_makes_the_images(bare_bundle: Path) -> None:
    with open_engine(bare_bundle, "toy") as toy, open_engine(bare_bundle, "torch") as torch:
        assert toy.description == "toy fp32 on a toy"
        assert (toy.sample(3, seed=1) == torch.sample(3, seed=1)).all()
    assert toy.backend.closed  # type: ignore[attr-defined]


def test_the_commands_take_it(bare_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    asked = ("--bundle", bare_bundle, "--engine", "toy")
    assert "toy fp32 on a toy" in run("sample", *asked, "--num", 2, "--out", out)
    assert json.loads(run("verify", *asked, "--num", 2, "--json"))["why_failed"] is None
    out = run("bench", *asked, "--batch", 2, "--trials", 1, "--json")
    measured = json.loads(out.splitlines()[0])
    assert measured["engine"] == "toy" and measured["facts"] == {"wheels": 4}


def test_it_has_a_rung_and_a_bar_of_its_own_colour(bare_bundle: Path, tmp_path: Path) -> None:
    rungs = rungs_of(Workshop(open_bundle(bare_bundle), "cpu", 2, tmp_path, print))
    (name,) = (rung.name for rung in rungs if rung.name.startswith("toy"))
    assert name == "toy fp32, the bundle"
    bars = [row("torch", kind="rung", rung="torch"), row("toy", kind="rung", rung=name)]
    (axes,) = ladder_figure(bars).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["torch", name]
    assert colour(bars[1]) == "#123456" != colour(bars[0])


def test_doctor_lists_it(driver_asked_anew: None) -> None:
    report: dict[str, Any] = json.loads(run("doctor", "--json"))
    toy = {"engine": "toy", "device": "cpu", "precisions": ["fp32"], "why_not": None}
    assert toy in report["engines"]
