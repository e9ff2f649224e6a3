"""Two processes that want the same plan, and one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.bundle import Bundle

ROOT = Path(__file__).resolve().parents[4]
PATIENCE = 60.0  # seconds


class Builders:
    """Processes that build one bundle, and the count of what was built."""

    def __init__(self, bundle: Bundle, tmp_path: Path) -> None:
        self.folder, self.counts = bundle.folder, tmp_path / "counts"
        self.hold = tmp_path / "go on"
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *, held: bool = False) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "tests.engine.backends.trt.build_in_process"]
        arguments = [str(self.folder), str(self.counts), *([str(self.hold)] if held else [])]
        process = subprocess.Popen(
            [*program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process

    def wait_for_builds(self, count: int) -> None:
        end = time.monotonic() + PATIENCE
        while len(self.built()) < count:
            assert time.monotonic() < end, "no build was begun"
            time.sleep(0.02)

    def built(self) -> list[str]:
        return self.counts.read_text().split() if self.counts.exists() else []

    def names(self, pattern: str) -> list[str]:
        return [path.name for path in (self.folder / "engines").glob(pattern)]


@pytest.fixture
def builders(bundle: Bundle, tmp_path: Path) -> Iterator[Builders]:
    found = Builders(bundle, tmp_path)
    yield found
    for process in found.started:
        process.kill()
        process.communicate()


def waits(process: subprocess.Popen[str]) -> bool:
    """Read the next line of a builder; True if it says that it waits."""
    assert process.stdout is not None
    line = process.stdout.readline()
    return line.startswith("another process is building") and "waiting" in line


def test_the_second_waits_and_finds_the_plan(builders: Builders) -> None:
    first = builders.start(held=True)
    builders.wait_for_builds(1)
    second = builders.start()
    assert waits(second)
    builders.hold.touch()
    (made, _), (found, _) = (each.communicate(timeout=PATIENCE) for each in (first, second))
    assert first.returncode == second.returncode == 0
    assert builders.built() == ["generator", "decoder"]
    assert found.splitlines()[-1] == made.splitlines()[-1]
    assert builders.names("[!.]*-l3-*") == [made.splitlines()[-1]]


def test_after_a_kill_the_second_goes_on(builders: Builders) -> None:
    first = builders.start(held=True)
    builders.wait_for_builds(1)
    assert len(builders.names(".*.tmp")) == 1
    second = builders.start()
    assert waits(second)
    os.kill(first.pid, signal.SIGKILL)
    out, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0
    assert builders.built() == ["generator", "generator", "decoder"]
    assert builders.names("[!.]*-l3-*") == [out.splitlines()[-1]]
    assert builders.names(".*.tmp") == []


def test_what_a_killed_builder_of_another_plan_left_is_removed(builders: Builders) -> None:
    left = builders.folder / "engines" / ".trt-1-gpu-fp16-b1-2-3-l3-0123.deadbeef.tmp"
    left.mkdir(parents=True)
    (left / "generator.plan").write_text("half a plan")
    process = builders.start()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert not left.exists()
