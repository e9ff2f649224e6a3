"""PyTorch as an engine: the baseline, fp16 channels-last, torch.compile."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from engine.backends.torch.run import (
    TorchBackend,
    compiled_module,
    graph_modules,
    pytorch_memory_named,
)
from engine.registry import BASELINE_PRECISION, open_engine
from engine.sampler import Sampler
from lddgan.checkpoint import Model, random_model
from lddgan.errors import LddganError, OutOfMemory
from lddgan.noise import Noise, draw
from lddgan.preset import with_values
from tests.conftest import TINY


def sampler(backend: TorchBackend, model: Model) -> Sampler:
    return Sampler(backend, model.preset, random_weights=True, chunk=2)


def test_the_baseline_is_eager_fp32_in_the_default_memory_format(tiny_model: Model) -> None:
    backend = TorchBackend(tiny_model, "cpu")
    assert (backend.name, backend.precision, BASELINE_PRECISION) == ("torch", "fp32", "fp32")
    assert backend.generator.generator is tiny_model.generator  # type: ignore[attr-defined]
    uploaded = backend.upload(np.zeros((2, 4, 8, 8), np.float32))
    assert uploaded.is_contiguous() and uploaded.dtype == torch.float32


def test_fp16_modules_are_channels_last_copies(tiny_model: Model) -> None:
    before = copy.deepcopy(tiny_model.generator.state_dict())
    halves = graph_modules(tiny_model, "fp16")
    kernels = [p for half in halves for p in half.parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert len(kernels) > 10
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert {p.dtype for p in halves[0].parameters()} == {torch.float16}
    for name, value in tiny_model.generator.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])


class HalfOnCpu(TorchBackend):
    """What runs on a GPU, on a CPU, which is slow and meant for this test only."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, "cpu")
        self.generator, self.decoder = graph_modules(model, "fp16")
        self.memory_format = torch.channels_last


def test_fp16_channels_last_makes_the_same_images(tiny_model: Model) -> None:
    true = sampler(TorchBackend(tiny_model, "cpu"), tiny_model).sample(3, seed=5)
    half = sampler(HalfOnCpu(tiny_model), tiny_model).sample(3, seed=5)
    off = np.abs(half.astype(int) - true.astype(int))
    assert 0 < off.max() <= 3 and off.mean() < 0.5  # different arithmetic, the same picture


def test_compiled_is_another_name_and_never_runs_eagerly(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def recorded(module: Any, **options: Any) -> Any:
        asked.append(options)
        return module

    monkeypatch.setattr(torch, "compile", recorded)
    backend = TorchBackend(tiny_model, "cpu", compiled=True)
    assert backend.name == "torch-compile"
    assert asked == [{"fullgraph": True, "dynamic": False}] * 2
    eager = sampler(TorchBackend(tiny_model, "cpu"), tiny_model).sample(2, seed=1)
    np.testing.assert_array_equal(sampler(backend, tiny_model).sample(2, seed=1), eager)


def test_what_does_not_compile_is_an_error_in_one_sentence() -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum().item() > 0 else x

    with pytest.raises(LddganError, match=r"^torch.compile failed: .*; --engine torch runs"):
        compiled_module(Branching())(torch.ones(2))


@pytest.mark.full
@pytest.mark.timeout(900)  # compilers take minutes
def test_compiled_images_are_the_baselines() -> None:
    less = {"image_size": 16, "generator.ch_mult": [1], "autoencoder.ch_mult": [1, 1]}
    model = random_model(with_values(TINY, less))
    eager = sampler(TorchBackend(model, "cpu"), model).sample(2, seed=2)
    compiled = sampler(TorchBackend(model, "cpu", compiled=True), model)
    off = np.abs(compiled.sample(2, seed=2).astype(int) - eager.astype(int))
    assert off.max() <= 1


def test_too_little_memory_is_named() -> None:
    with (
        pytest.raises(OutOfMemory, match="PyTorch found too little memory"),
        pytorch_memory_named(),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def test_too_little_memory_halves_the_chunk(tiny_model: Model) -> None:
    class Small(TorchBackend):
        def decode(self, x_0: torch.Tensor) -> torch.Tensor:
            with pytorch_memory_named():
                if len(x_0) > 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")
            return super().decode(x_0)

    heard: list[str] = []
    small = Sampler(
        Small(tiny_model, "cpu"), tiny_model.preset, random_weights=True, chunk=4, log=heard.append
    )
    true = sampler(TorchBackend(tiny_model, "cpu"), tiny_model).sample(4, seed=3)
    off = np.abs(small.sample(4, seed=3).astype(int) - true.astype(int))
    assert off.max() <= 1
    assert len(heard) == 2 and "instead of 4" in heard[0]


def test_the_engine_of_a_bundle(tiny_bundle: Path) -> None:
    opened = open_engine(tiny_bundle, "torch", "fp32", "cpu")
    assert opened.description.startswith("torch fp32 on CPU")
    with pytest.raises(LddganError, match="torch-compile"):
        open_engine(tiny_bundle, "torch-compile", "fp16", "cpu")


def test_fp32_channels_last_makes_the_same_images(
    tiny_model: Model,
) -> None:
    plain = sampler(TorchBackend(tiny_model, "cpu"), tiny_model)
    backend = TorchBackend(tiny_model, "cpu", nhwc=True)
    assert (backend.name, backend.precision) == ("torch", "fp32")
    assert backend.where.endswith(", channels-last")
    uploaded = backend.upload(np.zeros((2, 4, 8, 8), np.float32))
    assert uploaded.is_contiguous(memory_format=torch.channels_last)
    kernels = [p for p in tiny_model.generator.parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert all(kernel.is_contiguous() for kernel in kernels)
    own = [p for p in backend.generator.parameters() if p.ndim == 4]  # type: ignore[attr-defined]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in own)
    off = sampler(backend, tiny_model).sample(3, seed=4).astype(int) - plain.sample(3, seed=4)
    assert abs(off).max() <= 1


@pytest.mark.parametrize("fits", [0, 3])
def test_noise_that_does_not_fit_is_drawn_in_parts(tiny_model, monkeypatch, fits: int) -> None:
    """From the start, or of the second batch, which is drawn while the first one is computed."""
    true = sampler(TorchBackend(tiny_model, "cpu"), tiny_model).sample(6, seed=5)

    def draws(preset: Any, first: int, count: int, *, seed: int) -> Noise:
        if first >= fits and count > 1:
            raise MemoryError("Unable to allocate 9 GiB for an array")
        return draw(preset, first, count, seed=seed)

    monkeypatch.setattr("engine.sampler.draw", draws)
    heard: list[str] = []
    backend = TorchBackend(tiny_model, "cpu")
    small = Sampler(backend, tiny_model.preset, random_weights=True, chunk=3, log=heard.append)
    off = np.abs(small.sample(6, seed=5, batch=3).astype(int) - true.astype(int))
    assert off.max() <= 1
    told = "the CPU has too little memory for 3 images at once; going on with 1 images at once"
    assert len(heard) == 1 and heard[0].startswith(told)


def test_cpu_memory_that_runs_out_is_named(tiny_model: Model) -> None:
    backend = TorchBackend(tiny_model, "cpu")
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
    backend.decoder = Mock(side_effect=full)
    with pytest.raises(OutOfMemory, match="PyTorch found too little memory on the CPU; run fewer"):
        backend.decode(torch.zeros(1, 4, 8, 8))
