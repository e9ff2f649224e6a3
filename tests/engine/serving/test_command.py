"""`lddgan serve` and `lddgan verify --slots` as commands: what they say and refuse."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

import cli
from export.bundle import DIGITS
from tests.test_cli import Outcome, refused

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn")


@pytest.fixture
def lddgan(monkeypatch, capsys):  # type: ignore[no-untyped-def]
    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["lddgan", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Outcome(int(stop.value.code or 0), *capsys.readouterr())

    return run


def test_a_port_in_use_is_one_sentence(lddgan) -> None:  # type: ignore[no-untyped-def]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = lddgan("serve", "--dataset", "digits", "--port", taken.getsockname()[1])
    refused(outcome, "cannot listen on 127.0.0.1", code=1)


def test_an_unknown_host_is_one_sentence(lddgan) -> None:  # type: ignore[no-untyped-def]
    outcome = lddgan("serve", "--dataset", "digits", "--host", "no.such.host.invalid")
    refused(outcome, "cannot listen on no.such.host.invalid", code=1)


def test_two_bundles_of_one_name_are_refused(lddgan, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(DIGITS, tmp_path / "other")
    outcome = lddgan("serve", "--port", 0, "--bundle", DIGITS, "--bundle", tmp_path / "other")
    refused(outcome, "two bundles are named digits")


def test_dataset_and_bundle_exclude_each_other(lddgan) -> None:  # type: ignore[no-untyped-def]
    refused(lddgan("serve", "--dataset", "digits", "--bundle", DIGITS), "give one")


@pytest.mark.parametrize("content", [None, "", "\n \n", "schlüssel\n", "a\tb\n"])
def test_a_file_without_tokens_is_refused(lddgan, tmp_path: Path, content: str | None) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    refused(lddgan("serve", "--dataset", "digits", "--token-file", path), "tokens")


def test_slots_are_checked_without_pytorch(lddgan, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("lddgan.extras.find_spec", lambda name: None if name == "torch" else True)
    words = ("verify", "--slots", "--dataset", "digits", "--engine", "ort", "--batch", 4)
    outcome = lddgan(*words, "--num", 10)
    assert outcome.code == 0, outcome.err
    assert "batches of 4: 0 of" in outcome.out
    found = json.loads(lddgan(*words, "--num", 10, "--json").out)
    assert found["changed"] == 0 and found["compared"] >= 10


def test_an_engine_whose_images_change_fails_and_is_served_in_blocks(
    lddgan, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    from engine.registry import open_engine
    from engine.sampler import Sampler
    from engine.serving.served import way_of

    run = Sampler.run
    monkeypatch.setattr(
        Sampler, "run", lambda *given: run(*given) + bool(given[1][:, 0, 0, 0].sum() > 0)
    )
    outcome = lddgan("verify", "--slots", "--dataset", "digits", "--engine", "ort", "--num", 100)
    refused(outcome, "images changed in other company", "blocks of one seed", code=1)
    said: list[str] = []
    with open_engine(DIGITS, "ort", batch=4, log=said.append) as sampler:
        assert way_of(sampler, 4) == "blocks"
    assert "blocks of 4 images of one seed" in said[0]


def test_slots_are_of_an_engine(lddgan) -> None:  # type: ignore[no-untyped-def]
    refused(lddgan("verify", "--slots", "--images", "x.npz"), "--images a file")
