"""Folders that are there whole or not at all, whatever fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lddgan.errors import LddganError
from lddgan.files import atomic_folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    return tmp_path / "folder"


def replace_with(failing: dict[int, type[BaseException]]) -> Callable[[Path, Path], None]:
    """os.replace whose calls of these numbers fail."""
    replace, calls = os.replace, iter(range(9))

    def call(source: Path, target: Path) -> None:
        error = failing.get(next(calls))
        if error is not None:
            raise error(5, "Input/output error")
        replace(source, target)

    return call


def test_new_folder_takes_the_place_of_the_old(folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "new").write_text("new")
        assert content(folder) == {"file": "old"}
    assert content(folder) == {"new": "new"} and os.listdir(folder.parent) == ["folder"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_old_folder_comes_back_if_the_new_cannot_be_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr(os, "replace", replace_with({1: error}))
    with pytest.raises((LddganError, KeyboardInterrupt)), atomic_folder(folder):
        pass
    assert content(folder) == {"file": "old"} and os.listdir(folder.parent) == ["folder"]


def test_old_folder_stays_beside_if_it_cannot_come_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", replace_with({1: OSError, 2: OSError}))
    with pytest.raises(LddganError, match=r"cannot write .*folder: Input"), atomic_folder(folder):
        pass
    (left,) = folder.parent.iterdir()
    assert content(left) == {"file": "old"}


def test_without_replacing_only_an_empty_folder_is_taken(folder: Path) -> None:
    with (
        pytest.raises(LddganError, match=r"cannot write .*folder: Directory not empty"),
        atomic_folder(folder, replaces=False),
    ):
        pass
    assert content(folder) == {"file": "old"} and os.listdir(folder.parent) == ["folder"]
    (folder / "file").unlink()
    with atomic_folder(folder, replaces=False) as temporary:
        (temporary / "new").write_text("new")
    assert content(folder) == {"new": "new"}


def test_an_error_of_the_body_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path / "a") == []
