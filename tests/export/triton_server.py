"""NVIDIA's tritonserver as a process of a test, and requests to it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.bundles import ROOT, all_cores
from tests.export import setup_triton

START_SECONDS, STOP_SECONDS = 120, 60

WHY_NOT = setup_triton.why_not_here()
needs_triton = pytest.mark.skipif(WHY_NOT is not None, reason=f"no tritonserver: {WHY_NOT}")


class Server(NamedTuple):
    """A server that answers."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


def environment() -> dict[str, str]:
    """What the server, and a Python of its packages, is started with."""
    path = f"{setup_triton.DESTINATION / 'bin'}{os.pathsep}{os.environ['PATH']}"
    libraries = str(setup_triton.site() / "nvidia_pytriton.libs")
    ours = {"LDDGAN_PATH": str(ROOT), "PYTHONPATH": str(ROOT)}  # for Triton's Python; for others
    return {**all_cores(), **ours, "PATH": path, "LD_LIBRARY_PATH": libraries}


def python(*args: object, cwd: Path) -> None:
    """Run `python ARGS` with the server's packages."""
    command = [setup_triton.DESTINATION / "bin" / "python", *args]
    subprocess.run([*map(str, command)], cwd=cwd, env=environment(), check=True)


@contextmanager
def serving(repository: Path, folder: Path, *options: str) -> Iterator[Server]:
    """A server of a repository, stopped at the end; its log is in `folder`, where it works."""
    setup_triton.main()
    home, port, log = setup_triton.home(), free_port(), folder / "triton.log"
    command = [
        home / "bin" / "tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={home / 'backends'}",
        f"--cache-directory={home / 'caches'}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
        *options,
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=file, stderr=file)
    server = Server(f"http://127.0.0.1:{port}/v2", process, log)
    try:
        wait_for(server)
        yield server
    finally:
        if process.poll() is None:
            stop(server)


def stop(server: Server) -> int:
    """Send SIGTERM; returns the exit status."""
    server.process.terminate()
    try:
        return server.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.process.kill()
        raise


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_for(server: Server) -> None:
    """Return when its models can be asked."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.process.poll() is None:
        try:
            with urlopen(f"{server.url}/health/ready", timeout=10):
                return
        except OSError:  # no connection, or 400: not yet
            time.sleep(0.1)
    raise AssertionError(server.log.read_text())


def call(server: Server, path: str, body: object = None) -> tuple[int, Any, bytes]:
    """GET, or POST a body: status, JSON, and the binary data after it."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(f"{server.url}/{path}", data), timeout=60) as answer:
            size = answer.headers.get("Inference-Header-Content-Length")
            told = answer.read()
            end = len(told) if size is None else int(size)
            return answer.status, json.loads(told[:end] or b"null"), told[end:]
    except HTTPError as error:
        return error.code, json.loads(error.read()), b""


def ask(
    server: Server, model: str, addresses: Sequence[tuple[int, int]]
) -> tuple[int, NDArray[np.uint8] | str]:
    """One request for (seed, index) of images: its status, and the images or the error."""
    columns = zip(("seed", "index"), zip(*addresses, strict=True), strict=True)
    shape = [len(addresses), 1]
    body = {
        "inputs": [
            {"name": name, "datatype": "INT64", "shape": shape, "data": numbers}
            for name, numbers in columns
        ],
        "outputs": [{"name": "image", "parameters": {"binary_data": True}}],
    }
    status, told, data = call(server, f"models/{model}/infer", body)
    if status != 200:
        return status, told["error"]
    return status, np.frombuffer(data, np.uint8).reshape(told["outputs"][0]["shape"])
