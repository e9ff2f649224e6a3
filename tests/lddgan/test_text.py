"""Names of any bytes in messages, JSON and command lines."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess

import pytest

from lddgan.errors import BadInput, LddganError
from lddgan.options import warn
from lddgan.text import in_json, printable, quoted

NAMES = {  # bytes on the disk -> what people read
    b"stra\xdfe": r"stra\xdfe",
    b"\x1b]0;title\x07": r"\x1b]0;title\x07",
    b"two\nlines\r\tx": r"two\nlines\r\tx",
    "\x9b31m\u202e\u2028".encode(): r"\u009b31m\u202e\u2028",
    "写真\u3000集 é e\u0301 🙂".encode(): "写真\u3000集 é e\u0301 🙂",  # as it is
    b'-it\'s \\ $HOME `x` "\xff"!': '-it\'s \\ $HOME `x` "\\xff"!',
    b"plain/name.png": "plain/name.png",
}


@pytest.mark.parametrize("name", NAMES)
def test_any_name_becomes_one_line_that_can_be_printed(name: bytes) -> None:
    found = printable(os.fsdecode(name))
    assert found == NAMES[name] and printable(found) == found
    assert found.encode().decode() == found and len(found.splitlines()) == 1


def test_a_surrogate_that_is_no_byte_is_printable_too() -> None:
    assert printable("a\ud800b") == r"a\ud800b"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_quoted_name_is_the_same_when_a_shell_reads_it(name: bytes) -> None:
    word = quoted(os.fsdecode(name))
    assert printable(word) == word
    shell = ("bash", "-c", f"printf %s {word}")
    read = subprocess.run(shell, env=os.environ | {"LC_ALL": "C.UTF-8"}, capture_output=True)
    assert read.stdout == name, read.stderr


def test_data_for_json_keeps_everything_but_bytes() -> None:
    data = {"a\udce9": ["x\udcff", ("é", 1, None)], "deep": {"n": 0.5, "s": "\x1b[0m"}}
    found = in_json(data)
    assert found == {r"a\xe9": [r"x\xff", ["é", 1, None]], "deep": {"n": 0.5, "s": r"\x1b[0m"}}
    assert json.loads(json.dumps(found, ensure_ascii=False).encode()) == found


@pytest.mark.parametrize("kind", [LddganError, BadInput])
def test_every_error_is_one_printable_line(kind: type[LddganError]) -> None:
    error = kind("cannot read \udce9\n\x1b[31m")
    assert str(error) == r"cannot read \xe9\n\x1b[31m"
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind and str(copy) == str(error)


@pytest.mark.parametrize(
    ("term", "no_color", "red"),
    [("xterm", None, True), ("xterm", "", True), ("xterm", "1", False), ("dumb", None, False)],
)
def test_warnings_are_red_on_a_terminal_that_takes_it(
    monkeypatch, capsys, term: str, no_color: str | None, red: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    warn("error: \x1b[32mgreen\udce9")
    plain = "error: \\x1b[32mgreen\\xe9"
    assert capsys.readouterr().err == (f"\x1b[31m{plain}\x1b[0m\n" if red else f"{plain}\n")
