"""Folders that are there whole or not at all, whatever fails."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lddgan.errors import BadInput, LddganError
from lddgan.files import (
    LOCK,
    atomic_folder,
    atomic_write,
    check_file,
    refuse_used,
    sole_writer,
)


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


# ---- links, devices, pipes ----


def test_file_is_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "target"
    (tmp_path / "link").symlink_to("disk/target")
    (tmp_path / "two").symlink_to("link")
    for data in (b"new", b"newer"):  # first it dangles
        atomic_write(tmp_path / "two", data)
        assert target.read_bytes() == data and os.listdir(target.parent) == ["target"]
    assert (tmp_path / "two").is_symlink() and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("replaces", [True, False])
def test_folder_is_made_where_its_link_leads(tmp_path: Path, replaces: bool) -> None:
    (tmp_path / "link").symlink_to("disk/target")
    with atomic_folder(tmp_path / "link", replaces=replaces) as temporary:
        (temporary / "new").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "disk" / "target") == {"new": "new"}
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: atomic_write(path, b""),
        lambda path: atomic_folder(path).__enter__(),
        lambda path: sole_writer(path).__enter__(),
        lambda path: sole_writer(path, beside=True).__enter__(),
        check_file,
        refuse_used,
    ],
)
def test_pipes_devices_and_stdout_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    for name in ("pipe", "link", "/dev/zero", "-"):
        with pytest.raises(BadInput, match=r"name a file or a folder") as caught:
            write(Path(name))
        assert str(caught.value).startswith(name)
    assert stat.S_ISFIFO(os.stat("link").st_mode) and sorted(os.listdir()) == ["link", "pipe"]


def test_unwritable_place_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LddganError, match="cannot write"):
        check_file(tmp_path / "file" / "x")
    with pytest.raises(BadInput, match="is a folder; name a file"):
        check_file(tmp_path)
    check_file(tmp_path / "new" / "x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "new"]


# ---- one writer, or one after the other ----

HOLDING = """
import sys
from pathlib import Path
from lddgan.files import sole_writer
with sole_writer(Path(sys.argv[1]), beside=sys.argv[2] == "beside"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("beside", [True, False])
def test_second_writer_is_refused_until_the_first_is_killed(tmp_path: Path, beside: bool) -> None:
    (tmp_path / "link").symlink_to("out")
    where = "beside" if beside else "inside"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path / "link", where],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(LddganError, match=f"out is being written by process {holder.pid} on "),
        sole_writer(tmp_path / "out", beside=beside),
    ):
        pass
    holder.kill()
    holder.communicate()
    folder = tmp_path if beside else tmp_path / "out"
    half, left, mine = (folder / f".out.{name}.tmp" for name in ("89abcdef", "0123cdef", "keep"))
    half.mkdir()
    for path in (half / "half", left, mine):
        path.write_text("half")
    with sole_writer(tmp_path / "out", beside=beside):
        assert not left.exists()
        assert half.exists() != beside  # inside it may be of an export that is at work
    assert left not in folder.iterdir() and mine in folder.iterdir()


def test_folder_made_for_a_lock_goes_unless_it_is_used(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "empty"):
        refuse_used(tmp_path / "empty", LOCK)
    with sole_writer(tmp_path / "used"):
        (tmp_path / "used" / "x").write_text("")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["used", "x"]


def test_folders_replaced_at_once_are_all_replaced(tmp_path: Path) -> None:
    def replace(number: int) -> None:
        for _ in range(20):
            with atomic_folder(tmp_path / "out") as temporary:
                for name in ("a", "b"):
                    (temporary / name).write_text(str(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(replace, range(4)))
    a, b = content(tmp_path / "out").values()
    assert a == b and os.listdir(tmp_path) == ["out"]
