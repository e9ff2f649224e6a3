"""PyTorch in whole float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def exact_fp32() -> Iterator[None]:
    """PyTorch without TF32: on a GPU it takes it for convolutions, and for products if told to.

    Afterwards every setting is what it was: PyTorch has an old one for all products and, since 2.9,
    one for each backend's, and refuses to compute where they contradict each other.
    """
    import torch

    backends: Any = torch.backends
    products = (backends.cuda.matmul, backends.mkldnn.matmul)
    old, new = _old_precision(), [product.fp32_precision for product in products]
    torch.set_float32_matmul_precision("highest")  # sets the new ones too
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(old)
        for product, precision in zip(products, new, strict=True):
            product.fp32_precision = precision


def _old_precision() -> str:
    """The old setting; PyTorch does not tell it where only the new ones were changed."""
    import torch

    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"
