"""A real `lddgan serve` in a process of its own, and a client of the standard library."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

SECONDS = 60.0  # that anything may take beside other tests


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class Running(NamedTuple):
    """A service that listens."""

    process: subprocess.Popen[str]
    address: tuple[str, int]
    told: str  # its first line: what it serves
    log: Path  # its stderr

    @property
    def model(self) -> str:
        """NAME@DIGEST"""
        return self.told.partition(":")[0]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.address, timeout=SECONDS)

    def get(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        connection = self.connect()
        try:
            return ask(connection, path, method, body, **headers)
        finally:
            connection.close()

    def end(self) -> int:
        """Ask it to end; its exit code."""
        self.process.terminate()
        return self.process.wait(SECONDS)


def ask(
    connection: http.client.HTTPConnection,
    path: str,
    method: str = "GET",
    body: bytes = b"",
    **headers: str,
) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body or None, sent)
    answer = connection.getresponse()
    found = {name.lower(): value for name, value in answer.getheaders()}
    return Answer(answer.status, found, answer.read())


@contextmanager
def serving(*options: object) -> Iterator[Running]:
    """`lddgan serve` on a free port, digits in batches of 4 unless told otherwise."""
    given = list(map(str, options))
    if "--dataset" not in given and "--bundle" not in given:
        given += ["--dataset", "digits"]
    for name, value in (("--engine", "ort"), ("--batch", "4"), ("--port", "0")):
        given += [] if name in given else [name, value]
    words = [sys.executable, "-m", "lddgan", "serve", *given]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env
            )
        try:
            assert process.stdout is not None
            told, url = process.stdout.readline(), process.stdout.readline()
            assert url.startswith("http://"), log.read_text()
            place = urlsplit(url.strip())
            yield Running(process, (str(place.hostname), int(place.port or 0)), told, log)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
