"""TensorRT on a real GPU: built, verified, captured."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.registry import open_engine, survey
from engine.sampler import Sampler
from engine.verify import verify_engine
from export.bundle import DIGITS, open_bundle
from lddgan.checkpoint import Model, load_checkpoint
from lddgan.names import Precision

pytestmark = pytest.mark.gpu

BATCH = 8


@pytest.fixture(autouse=True)
def _a_gpu() -> None:
    for candidate in survey("trt"):
        if candidate.why_not is not None:
            pytest.skip(candidate.why_not)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped digits, where engines can be built beside them."""
    folder = tmp_path_factory.mktemp("bundle") / "digits"
    shutil.copytree(DIGITS, folder)
    return folder


@pytest.fixture(params=["tiny fp32", "tiny fp16", "digits fp32"])
def asked(request: pytest.FixtureRequest, tiny_bundle: Path, digits: Path) -> tuple[Path, str]:
    """A bundle and a precision that it has."""
    name, precision = request.param.split()
    return tiny_bundle if name == "tiny" else digits, precision


def opened(asked: tuple[Path, Precision], **options: bool) -> Sampler:
    folder, precision = asked
    return open_engine(folder, "trt", precision, batch=BATCH, **options)


def test_the_graph_is_the_same_as_the_steps_one_by_one(asked: tuple[Path, Precision]) -> None:
    captured, stepwise = opened(asked), opened(asked, cuda_graph=False)
    assert captured.backend.captures and not stepwise.backend.captures
    for seed in (1, 2**62):
        assert np.array_equal(captured.sample(BATCH, seed), stepwise.sample(BATCH, seed))


def test_the_same_seed_repeats_and_another_differs(asked: tuple[Path, Precision]) -> None:
    sampler = opened(asked)
    first, other = sampler.sample(BATCH, seed=5), sampler.sample(BATCH, seed=6)
    assert np.abs(first.astype(int) - other).max() > 10
    assert np.array_equal(sampler.sample(BATCH, seed=5), first)
    shifted = sampler.sample(BATCH, seed=5, first=1)
    assert np.abs(shifted[:-1].astype(int) - first[1:]).max() <= 1


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_it_passes_verification(asked: tuple[Path, Precision], cuda_graph: bool) -> None:
    model = load_checkpoint(open_bundle(asked[0]).file("model.safetensors"))
    sampler = opened(asked, cuda_graph=cuda_graph)
    found = verify_engine(sampler, model, images=BATCH, device="cpu")
    assert found.noise_identical
    assert found.passed, found.why_failed


def test_vq_passes_verification(tiny_vq_bundle: Path, tiny_vq_model: Model) -> None:
    sampler = open_engine(tiny_vq_bundle, "trt", "fp32", batch=BATCH)
    found = verify_engine(sampler, copy.deepcopy(tiny_vq_model), images=BATCH, device="cpu")
    assert found.passed, found.why_failed
