"""A new engine is one file and one line: everything else finds it in the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cli
from engine import registry
from engine.registry import open_engine


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
    row = json.loads(run("bench", *asked, "--batch", 2, "--trials", 1, "--json").splitlines()[0])
    assert row["engine"] == "toy" and row["facts"] == {"wheels": 4}


def test_doctor_lists_it(driver_asked_anew: None) -> None:
    report: dict[str, Any] = json.loads(run("doctor", "--json"))
    toy = {"engine": "toy", "device": "cpu", "precisions": ["fp32"], "why_not": None}
    assert toy in report["engines"]
