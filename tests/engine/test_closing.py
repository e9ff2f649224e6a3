"""Engines are closed: memory and files go back, and one thread at a time is served."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from engine.registry import open_engine
from export.bundle import DIGITS
from lddgan.errors import LddganError, OutOfMemory
from tests.needs import needs

TIMES = 50
SETTLED = 10  # openings after which allocators hold what they are going to hold
GROWTH = 40 << 20  # bytes, in all of the others; a bundle that stays takes 5 MB each time


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("ort", marks=pytest.mark.full),
        pytest.param("torch", marks=pytest.mark.full),
        pytest.param("openvino", marks=[pytest.mark.full, needs("openvino")]),
    ],
)
def test_memory_and_files_go_back(engine: str) -> None:
    after: list[tuple[int, int, int]] = []
    for _ in range(TIMES):
        with open_engine(DIGITS, engine, "fp32", "cpu", batch=1) as sampler:
            sampler.sample(1)
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
        after.append((pages * os.sysconf("SC_PAGE_SIZE"), files, threads))
    memory, *others = zip(*after[SETTLED:], strict=True)
    assert max(memory) - memory[0] < GROWTH
    assert [len(set(counts)) for counts in others] == [1, 1]


def test_a_closed_sampler_says_so(bare_bundle: Path) -> None:
    sampler = open_engine(bare_bundle, "torch", device="cpu")
    sampler.close()
    sampler.close()
    for call in (lambda: sampler.sample(1), lambda: sampler.make(0, 0, 1)):
        with pytest.raises(LddganError, match="this Sampler is closed; open the engine again"):
            call()


def test_a_second_thread_is_refused_and_then_served(bare_bundle: Path) -> None:
    sampler = open_engine(bare_bundle, "torch", device="cpu")
    entered, leave = threading.Event(), threading.Event()
    decode = sampler.backend.decode

    def slowly(x_0: object) -> object:
        entered.set()
        assert leave.wait(60)
        return decode(x_0)

    sampler.backend.decode = slowly  # type: ignore[method-assign]
    made: list[np.ndarray] = []
    first = threading.Thread(target=lambda: made.append(sampler.sample(1)))
    first.start()
    assert entered.wait(60)
    for call in (lambda: sampler.sample(1), sampler.close):
        with pytest.raises(LddganError, match="this Sampler is at work in another thread"):
            call()
    leave.set()
    first.join()
    assert (sampler.sample(1) == made[0]).all()


def test_what_did_not_fit_once_is_still_taken(
    bare_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    sampler = open_engine(bare_bundle, "torch", device="cpu", chunk=4, log=lambda _: None)
    step, full = sampler.backend.step, [True]

    def step_if_free(x: object, *inputs: object) -> object:
        if full[0] and len(x) > 1:  # type: ignore[arg-type]
            raise OutOfMemory("full")
        return step(x, *inputs)

    sampler.backend.step = step_if_free  # type: ignore[method-assign]
    assert len(sampler.sample(4)) == 4  # one by one
    full[0] = False
    assert len(sampler.make(0, 0, 4).image) == 4
