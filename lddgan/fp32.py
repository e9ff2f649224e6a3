"""PyTorch in whole float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def exact_fp32() -> Iterator[None]:
    """PyTorch without TF32: on a GPU it takes it for convolutions, and for products if told to."""
    import torch

    matmul = torch.backends.cuda.matmul
    products, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = products
