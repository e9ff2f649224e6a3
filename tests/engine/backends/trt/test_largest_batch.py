"""A model whose largest tensor allows fewer than 127 images: profiles, chunks and refusals."""

from __future__ import annotations

from typing import Any

import pytest

from engine.backends.trt import engine as opening
from engine.registry import open_engine
from export.bundle import DIGITS, open_bundle
from export.graphs import graph_specs
from lddgan.errors import BadInput
from lddgan.presets import get_preset
from tests.engine.backends.trt.ort_runtime import Machine
from tests.engine.backends.trt.scripted import STRONG
from tests.engine.backends.trt.test_sampling import _one_gpu as _one_gpu

pytestmark = pytest.mark.fake_cuda
MOST = 9


@pytest.fixture(autouse=True)
def _digits_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(graph_specs(get_preset("digits")), most=MOST)
    monkeypatch.setattr(opening, "load", lambda name: machine.library(STRONG))
    monkeypatch.setattr(type(get_preset("digits")), "largest_activation", (2**31 - 1) // MOST)


def test_the_default_profile_is_cut() -> None:
    with open_engine(open_bundle(DIGITS), "trt", "fp32", log=lambda _: None) as sampler:
        assert sampler.backend.facts()["profile"] == f"1,{MOST},{MOST}"
        assert sampler.chunk == MOST
        assert len(sampler.sample(2 * MOST + 1)) == 2 * MOST + 1
    with pytest.raises(BadInput, match=rf"chunk is {MOST + 1}, the engine .* takes 1\.\.{MOST}"):
        open_engine(open_bundle(DIGITS), "trt", "fp32", chunk=MOST + 1, log=lambda _: None)


def test_build_takes_no_larger_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "why_no_gpu", lambda: None)
    options: dict[str, Any] = {"level": None, "rebuild": False, "log": lambda _: None}
    with pytest.raises(BadInput, match=rf"MIN <= OPT <= MAX <= {MOST}$"):
        opening.build_engine(open_bundle(DIGITS), "fp32", batch="1,2,10", name="trt", **options)
    for batch, profile in ((None, f"b1-{MOST}-{MOST}"), ("1,2,9", "b1-2-9")):
        done = opening.build_engine(open_bundle(DIGITS), "fp32", batch=batch, name="trt", **options)
        assert profile in done
