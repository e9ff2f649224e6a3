"""Paths as people give them: ~, blanks, links, devices; and hints that can be pasted."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

import pytest

import cli
from tests import test_cli
from tests.conftest import bare
from tests.test_cli import refused

lddgan = test_cli.lddgan  # the fixture

pytestmark = pytest.mark.usefixtures("one_thread")


def hints(text: str) -> list[list[str]]:
    """The words of all commands in backticks, as a shell reads them."""
    return [shlex.split(part) for part in text.split("`")[1::2]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_tilde_is_the_home_folder(lddgan, home: Path) -> None:
    done = lddgan("export", "--dataset", "digits", "--precision", "none", "--out=~/m 1")
    assert done.code == 0, done.err
    assert done.out.endswith(f"use it with --bundle '{home}/m 1'\n")
    assert os.listdir(home) == ["m 1"] and os.listdir(home.parent) == ["my home"]


def test_tilde_is_the_home_folder_only_where_a_path_begins(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        "typer.core.TyperGroup.parse_args", lambda self, ctx, args: seen.extend(args)
    )
    given = ["sample", "--out=a~/b", "--set=x=~/y", "~nobody-here/x", "-h", "./~/z", "--out"]
    paths = ["~", "~/m\n1", "--out=~", "--out=~/m 1"]
    cli.Commands(name="lddgan").parse_args(None, given + paths)
    assert seen == [*given, str(home), f"{home}/m\n1", f"--out={home}", f"--out={home}/m 1"]


def test_hint_to_export_fits_the_bundle_and_the_shell(lddgan, tmp_path: Path, tiny_model) -> None:
    bundle = bare(tmp_path / "it's mine", tiny_model)
    asked = lddgan("sample", "--bundle", bundle, "--engine", "ort", "--precision", "fp16")
    (words,) = hints(asked.err)[-1:]
    given = f"{bundle}/model.safetensors"
    expected = [
        "lddgan",
        "export",
        "--checkpoint",
        given,
        "--precision",
        "both",
        "--out",
        str(bundle),
    ]
    assert words == expected


def test_sampling_into_a_link_keeps_the_link(lddgan, bare_bundle: Path) -> None:
    common = ("sample", "--bundle", bare_bundle, "--engine", "torch", "--num", 2)
    for name in ("x.npz", "grid.PNG", "v2.5"):
        Path(name).symlink_to(f"disk/{name}")
        done = lddgan(*common, "--out", name)
        assert done.code == 0 and done.out.startswith(f"{name}: 2 images"), done
        assert Path(name).is_symlink()
    assert sorted(os.listdir("disk")) == ["grid.PNG", "v2.5", "x.npz"]
    assert sorted(os.listdir("v2.5")) == ["000000.png", "000001.png", "sampling.json"]
    refused(lddgan(*common, "--out", "v2.5"), "v2.5", "holds other files")


def test_pipes_and_devices_stay_what_they_are(lddgan, bare_bundle: Path) -> None:
    os.mkfifo("pipe")
    sample = ("sample", "--bundle", bare_bundle, "--engine", "torch", "--num", 1)
    export = ("export", "--checkpoint", bare_bundle / "model.safetensors", "--precision", "none")
    bench = ("bench", "--bundle", bare_bundle, "--engine", "torch")
    for name in ("pipe", "-", "/dev/zero"):
        refused(lddgan(*sample, "--out", name), name, "name a file or a folder")
        refused(lddgan(*export, "--out", name), name)
        refused(lddgan(*bench, "--save", name), name, "rows go to a .jsonl file")
    assert os.listdir() == ["pipe"] and stat.S_ISFIFO(os.stat("pipe").st_mode)
