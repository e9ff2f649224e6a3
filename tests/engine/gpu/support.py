"""What the tests of the device layer share."""

from __future__ import annotations

import numpy as np
import pytest

from engine.gpu.driver import why_no_gpu

fake_only = pytest.mark.fake_cuda
on_each = pytest.mark.parametrize(
    "where",
    [
        pytest.param("fake", marks=pytest.mark.fake_cuda),
        pytest.param("real", marks=pytest.mark.gpu),
    ],
)


def skip_without_gpu() -> None:
    cause = why_no_gpu()
    if cause is not None:
        pytest.skip(cause)


def numbers(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape)


def same(made: np.ndarray, expected: np.ndarray) -> bool:
    return (made.dtype, made.shape, made.tobytes()) == (
        expected.dtype,
        expected.shape,
        expected.tobytes(),
    )
