"""PyTorch on a stream of a GPU: its settings and its graphs, without a GPU."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from engine.backends.fused.gpu import TorchGpu


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> TorchGpu:
    """A TorchGpu that was not opened; `torch.cuda.stream` does nothing."""
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    made = TorchGpu.__new__(TorchGpu)
    made.stream, made.pool = "a stream", "a pool"  # type: ignore[assignment]
    return made


@pytest.fixture
def _products_in_tf32() -> Iterator[None]:
    """Somebody's choice."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    yield
    matmul.allow_tf32 = before


@pytest.mark.usefixtures("_products_in_tf32")
def test_settings_are_the_engines_only_while_it_runs(bare: TorchGpu) -> None:
    def settings() -> tuple[bool, bool, bool, bool]:
        backends: Any = torch.backends
        cudnn = backends.cudnn
        products = backends.cuda.matmul.allow_tf32
        return cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32, products

    before = settings()
    assert not before[1]
    with bare.active("fp16"):
        assert settings() == (True, True, True, True)
    with bare.active("fp32"):
        assert settings() == (True, True, False, False)
    assert settings() == before


def test_a_capture_runs_without_garbage_collection(
    bare: TorchGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    @contextmanager
    def graph(captured: Any, **options: Any) -> Iterator[None]:
        asked.append((captured, options))
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "a graph")
    monkeypatch.setattr(torch.cuda, "graph", graph)
    assert bare.capture(gc.isenabled) == ("a graph", False)
    assert gc.isenabled()
    options = {"pool": "a pool", "stream": "a stream", "capture_error_mode": "thread_local"}
    assert asked == [("a graph", options)]
