"""The fused engine on a real GPU: kernels, CUDA graph, noise and images."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.backends.fused import reference
from engine.registry import open_engine, survey
from engine.sampler import Sampler
from engine.verify import verify_engine
from lddgan.checkpoint import Model
from lddgan.names import Precision

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _a_gpu() -> None:
    for candidate in survey("fused"):
        if candidate.why_not is not None:
            pytest.skip(candidate.why_not)


@pytest.fixture(params=["fp32", "fp16", "bf16"])
def opened(bare_bundle: Path, request: pytest.FixtureRequest) -> Sampler:
    return open_engine(bare_bundle, "fused", request.param, batch=4)


def image(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    values = torch.randn(shape, device="cuda", dtype=dtype)
    return values.contiguous(memory_format=torch.channels_last)


# ---- the kernels, in sizes of the real models ----


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 128, 256, 256), 32), ((3, 512, 64, 64), 32), ((5, 384, 16, 16), 32), ((1, 48, 4, 4), 12)],
)
def test_group_norm_is_that_of_pytorch(shape: tuple[int, ...], groups: int) -> None:
    from engine.backends.fused import kernels

    x, channels = image(*shape), shape[1]
    weight, bias = (torch.randn(shape[0], channels, device="cuda").half() for _ in range(2))
    before = torch.randn(1, channels, device="cuda")
    given = {"weight": weight, "bias": bias, "before": before, "silu": True}
    true = reference.group_norm(x.double().float(), groups, 1e-6, **given)
    found = kernels.group_norm(x, groups, 1e-6, **given)
    assert float((found - true).abs().max() / true.abs().max()) < 1e-3


@pytest.mark.parametrize("name", ["fir_up", "fir_down", "add_"])
def test_the_rest_between_convolutions(name: str) -> None:
    from engine.backends.fused import kernels

    x, other, bias = image(3, 256, 32, 32), image(3, 256, 32, 32), torch.randn(256, device="cuda")
    given = {"fir_up": (), "fir_down": (2, 1), "add_": (other, bias, 0.7)}[name]
    true: Tensor = getattr(reference, name)(x.clone(), *given)
    found: Tensor = getattr(kernels, name)(x, *given)
    assert float((found - true).abs().max()) < 4e-3 * float(true.abs().max())


def test_nearest_code_is_that_of_float64() -> None:
    from engine.backends.fused import kernels

    vectors, codebook = torch.randn(4, 4096, 3).cuda(), torch.randn(8192, 3).cuda()
    codebook[[700, 8191]] = codebook[6].clone()
    found = kernels.nearest_code(vectors, codebook)
    true = torch.cdist(vectors.double(), codebook.double()).argmin(dim=-1)
    assert float((found != true).float().mean()) < 1e-3
    assert kernels.nearest_code(codebook[None, 700:701], codebook).tolist() == [[6]]


# ---- the engine ----


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_it_passes_verification(
    bare_bundle: Path, tiny_model: Model, precision: Precision, cuda_graph: bool
) -> None:
    sampler = open_engine(bare_bundle, "fused", precision, cuda_graph=cuda_graph)
    found = verify_engine(sampler, copy.deepcopy(tiny_model), images=8, device="cuda")
    assert found.noise_identical
    assert found.passed, found.why_failed


def test_vq_passes_verification(bare_vq_bundle: Path, tiny_vq_model: Model) -> None:
    sampler = open_engine(bare_vq_bundle, "fused", "fp32")
    found = verify_engine(sampler, copy.deepcopy(tiny_vq_model), images=8, device="cuda")
    assert found.passed, found.why_failed


def test_a_replay_reads_what_is_asked_anew(opened: Sampler) -> None:
    def made(seed: int, first: int) -> NDArray[np.int64]:
        return opened.backend.download(opened.make(seed, first, 4).image).astype(int)

    one, two = made(1, 0), made(2, 0)
    assert np.abs(one - two).max() > 10
    np.testing.assert_array_equal(made(1, 0), one)
    assert np.abs(made(1, 1)[:3] - one[1:]).max() <= 1


def test_one_image_runs_and_settings_stay(opened: Sampler) -> None:
    before = torch.backends.cudnn.benchmark
    opened.sample(1, seed=4)
    opened.sample(4, seed=4)
    assert torch.backends.cudnn.benchmark == before


def test_a_stream_of_pytorch_is_used_and_the_default_one_refused(bare_bundle: Path) -> None:
    from lddgan.errors import BadInput

    stream = torch.cuda.Stream()
    sampler = open_engine(bare_bundle, "fused", stream=stream)
    made = sampler.make(0, 0, 2)
    torch.cuda.current_stream().wait_stream(stream)
    assert made.image.float().std() > 1
    with pytest.raises(BadInput, match="default stream"):
        open_engine(bare_bundle, "fused", stream=torch.cuda.default_stream())
