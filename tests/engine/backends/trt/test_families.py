"""TensorRT's sampler on pixels and on Haar coefficients, played by ONNX Runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.backends.trt import engine as opening
from engine.backends.trt.run import TrtBackend
from engine.registry import open_engine
from export.bundle import open_bundle
from export.graphs import graph_specs
from tests.engine.backends.trt.ort_runtime import Machine
from tests.engine.backends.trt.scripted import STRONG
from tests.engine.backends.trt.test_sampling import _one_gpu as _one_gpu
from tests.engine.backends.trt.test_sampling import levels
from tests.small import small_bundle

pytestmark = pytest.mark.fake_cuda


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("name", ["small-pixels", "small-wavelet"])
def test_models_of_pixels_and_of_haar_coefficients(
    name: str, cuda_graph: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(shutil.copytree(small_bundle(name), tmp_path / name))
    machine = Machine(graph_specs(bundle.preset))
    monkeypatch.setattr(opening, "load", lambda name: machine.library(STRONG))
    monkeypatch.setattr(TrtBackend, "prepare", lambda self, batch: None)
    true = open_engine(bundle, "ort", "fp32", "cpu").sample(5, seed=3, first=9)
    quiet = {"log": lambda _: None, "cuda_graph": cuda_graph}
    with open_engine(bundle, "trt", "fp32", **quiet) as sampler:
        sampler.backend.chunks[5] = 2
        assert levels(sampler.sample(5, seed=3, first=9), true) <= 1
    assert true.std() > 10
    decoded = [batch for which, batch in machine.runs if which == "decoder"]
    assert decoded == [2, 2, 1] * (2 if cuda_graph else 1)
