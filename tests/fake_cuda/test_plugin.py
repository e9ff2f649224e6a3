"""What happens in the child is reported under the test's own name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lddgan.extras import why_missing

ROOT = Path(__file__).parents[2]
CASES = """
import ctypes, os, pytest

pytestmark = pytest.mark.fake_cuda

def test_runs(): assert ctypes.CDLL("libcuda.so.1").fake_set_memory(1 << 30) == 0
def test_fails(): assert 1 + 1 == 3, "on purpose"
def test_skips(): pytest.skip("not today")
@pytest.fixture
def broken(): raise KeyError("broken fixture")
def test_breaks(broken): pass
def test_dies(): os._exit(7)
def test_is_not_reached(): pass
"""


def test_every_result_of_the_child_is_seen_by_name(tmp_path: Path) -> None:
    if why_missing("cuda.core") or not shutil.which("g++"):
        pytest.skip("the child is not started without cuda-core and g++")
    (tmp_path / "conftest.py").write_text("from tests.fake_cuda.plugin import *")
    (tmp_path / "test_cases.py").write_text(CASES)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "--rootdir=."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert "4 failed, 1 passed, 1 skipped" in lines[-1]
    assert "PASSED test_cases.py::test_runs" in lines
    assert any(line.startswith("FAILED test_cases.py::test_fails") for line in lines)
    assert any(line.startswith("FAILED test_cases.py::test_breaks") for line in lines)
    for said in ("on purpose", "not today", "broken fixture", "the child died here"):
        assert said in done.stdout
    assert "not run: the child died in test_cases.py::test_dies" in done.stdout
