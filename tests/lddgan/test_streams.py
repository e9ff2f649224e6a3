"""Standard streams that are closed, full, or pipes that nobody reads."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lddgan.options import note, print_once
from lddgan.progress import Meter, to_stderr

ROOT = Path(__file__).resolve().parents[2]

full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def closed() -> io.StringIO:
    file = io.StringIO()
    file.close()
    return file


@pytest.mark.parametrize("stderr", [None, Broken(), closed()], ids=["none", "broken", "closed"])
def test_a_log_that_cannot_be_written_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stderr: object
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr("lddgan.progress.sys.stderr", stderr)
    if stderr is not None:
        monkeypatch.setattr(stderr, "isatty", lambda: False)
    to_stderr("one")
    note("two")
    print_once("three", err=True)
    with Meter("work", 0, 1, None) as meter:
        meter.advance(1)
    assert meter.done == 1 and capsys.readouterr().out == ""


def test_a_result_that_nobody_reads_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken())
    print_once("the file is written")


COMMAND = """
import sys
import cli
import typer
from lddgan.options import note, print_once

@cli.app.command()
def work(fail: bool = False) -> None:
    import warnings
    warnings.warn("a warning")
    for _ in range(3):
        note("at work")
    open("written", "w").close()
    if fail:
        typer.echo("a row")
    print_once("done")

sys.argv = ["lddgan", "work", *sys.argv[1:]]
from lddgan.__main__ import main
main()
"""


def run(folder: Path, redirections: str, *arguments: str) -> tuple[int, str]:
    """The exit code of a command, and what it wrote to the streams that are not redirected."""
    command = f'"{sys.executable}" -c "$CODE" {" ".join(arguments)} {redirections}; echo rc=$? >&3'
    said, number = os.pipe()
    done = subprocess.run(
        ["bash", "-c", f"exec 3>&{number}; {command}"],
        cwd=folder,
        env=os.environ | {"CODE": COMMAND, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=(number,),
        timeout=60,
    )
    os.close(number)
    with os.fdopen(said) as file:
        code = int(file.read().partition("rc=")[2])
    assert (folder / "written").exists()
    return code, done.stdout


@full_disk
@pytest.mark.parametrize("redirections", ["2>/dev/full", "<&- 2>&-", "2> >(exit)"], ids=str)
def test_stderr_that_takes_nothing_ends_no_command(tmp_path: Path, redirections: str) -> None:
    assert run(tmp_path, redirections) == (0, "done\n")


@full_disk
def test_stdout_that_is_full_is_one_sentence(tmp_path: Path) -> None:
    code, said = run(tmp_path, ">/dev/full")
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 1 and lines == ["error: input or output: No space left on device"]
    assert "Traceback" not in said and "Exception ignored" not in said


def test_stdout_that_is_closed_is_nobody(tmp_path: Path) -> None:
    code, said = run(tmp_path, "2>&- >&-")
    assert (code, said) == (0, "")
