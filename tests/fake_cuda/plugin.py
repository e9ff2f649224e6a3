"""pytest hooks: tests marked `fake_cuda` run in a child for each file, which has the fake driver.

The child is pytest again, with LD_LIBRARY_PATH leading to the driver; each of its results is
reported here under the test's own name.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from lddgan.extras import why_missing

HERE = Path(__file__).parent
KERNELS = HERE.parent.parent / "engine" / "gpu"
REPORT = "LDDGAN_FAKE_CUDA_REPORT"  # where the child writes, one JSON object a line
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
RESULTS = pytest.StashKey[dict[Path, dict[str, Any]]]()  # file -> nodeid -> outcome, words


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fake_cuda: runs in a child process on the fake CUDA driver")


@pytest.hookimpl(trylast=True)  # what is deselected is gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if REPORT not in os.environ:
        items[:] = [
            in_child(item) if item.get_closest_marker("fake_cuda") else item for item in items
        ]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """In the child: one test's errors are not the next one's."""
    if REPORT in os.environ and item.get_closest_marker("fake_cuda"):
        ctypes.CDLL("libcuda.so.1").fake_reset()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the child: a skip or failure wherever it happens, else that the call passed."""
    if REPORT in os.environ and (report.outcome != "passed" or report.when == "call"):
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        with open(os.environ[REPORT], "a", encoding="utf-8") as lines:
            lines.write(json.dumps([report.nodeid, report.outcome, said]) + "\n")


class InChild(pytest.Item):
    """Stands for a test whose result comes from the child of its file."""

    def runtest(self) -> None:
        results = self.session.stash.setdefault(RESULTS, {})
        if self.path not in results:
            mine = [item for item in self.session.items if isinstance(item, InChild)]
            names = [item.nodeid for item in mine if item.path == self.path]
            results[self.path] = run_child(names, self.config.rootpath)
        outcome, said = results[self.path][self.nodeid]
        if outcome == "skipped":
            pytest.skip(said.removeprefix("Skipped: "))
        if outcome == "failed":
            raise FailedInChild(said)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], **_: Any) -> str:  # type: ignore[override]
        return str(excinfo.value)


class FailedInChild(Exception):
    """The child's report of a failure."""


def in_child(item: pytest.Item) -> InChild:
    assert item.parent is not None
    stand_in: InChild = InChild.from_parent(item.parent, name=item.name)
    stand_in.own_markers = list(item.iter_markers())
    return stand_in


def run_child(names: list[str], root: Path) -> dict[str, Any]:
    missing = why_missing("cuda.core") or (not shutil.which("g++") and "g++ is not installed")
    if missing:
        return dict.fromkeys(names, ("skipped", missing))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        environment = {**os.environ, **build(root / "build" / "fake-cuda"), REPORT: str(report)}
        environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_XDIST")}
        options = ("-p", "no:cacheprovider", "-W", "error::pytest.PytestUnraisableExceptionWarning")
        command = [sys.executable, "-m", "pytest", "-q", *options, *names]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        lines = report.read_text().splitlines() if report.exists() else []
    results: dict[str, Any] = {}
    for nodeid, outcome, said in map(json.loads, lines):
        if results.get(nodeid, ("passed",))[0] == "passed":  # else its teardown failed as well
            results[nodeid] = (outcome, said)
    unheard = [name for name in names if name not in results]
    return results | (crashes(unheard, done) if unheard else {})


def crashes(unheard: list[str], done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The first of which the child said nothing is where it died; the rest were not run."""
    died = f"the child died here:\n{done.stdout}\n{done.stderr}"
    rest = ("failed", f"not run: the child died in {unheard[0]}")
    return dict.fromkeys(unheard, rest) | {unheard[0]: ("failed", died)}


def build(folder: Path) -> dict[str, str]:
    """Compile the driver and the kernels, unless another process has.

    Returns what the environment of a child then needs.
    """
    sources = [HERE / "libcuda.cpp", HERE / "kernels.cpp", KERNELS / "noise.cu"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    place = folder / digest[:16]
    driver, kernels = place / "libcuda.so.1", place / "libkernels.so"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock"):
        if not driver.exists():
            compile_cpp(HERE / "kernels.cpp", kernels, "-ffp-contract=off", f"-I{KERNELS}")
            compile_cpp(HERE / "libcuda.cpp", driver, "-Wl,-soname,libcuda.so.1")
    path = os.pathsep.join(filter(None, (str(place), os.environ.get("LD_LIBRARY_PATH"))))
    return {"LD_LIBRARY_PATH": path, "LDDGAN_FAKE_KERNELS": str(kernels)}


def compile_cpp(source: Path, library: Path, *flags: str) -> None:
    command = ["g++", *FLAGS, *flags, "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
