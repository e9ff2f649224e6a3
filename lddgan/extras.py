"""Optional packages: which one is missing, and the line that installs it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from lddgan.errors import LddganError

INSTALL: Final = {  # package -> how to get it
    "torch": 'pip install "lddgan[train]"',
    "safetensors": 'pip install "lddgan[train]"',
    "onnx": 'pip install "lddgan[train]"',
    "onnxscript": 'pip install "lddgan[train]"',
    "lmdb": 'pip install "lddgan[train]"',
    "sklearn": 'pip install "lddgan[train]"',
    "lpips": 'pip install "lddgan[train]"',
    "torchvision": 'pip install "lddgan[train]"',
    "tensorboard": 'pip install "lddgan[train]"',
    "matplotlib": 'pip install "lddgan[plot]"',
    "triton": "pip install triton (PyTorch for CUDA on Linux brings the right one)",
    "cuda.bindings": 'pip install "lddgan[gpu]"',
    "cuda.core": 'pip install "lddgan[gpu]"',
    "openvino": 'pip install "lddgan[cpu]"',
    "onnxruntime": 'pip install "lddgan[cpu]" (or "lddgan[gpu]")',
}


def why_missing(package: str) -> str | None:
    """Why `package` cannot be imported, with the install line; None if it is there."""
    parent, _, _ = package.rpartition(".")
    if (not parent or find_spec(parent)) and find_spec(package):
        return None
    return f"{package} is not installed; {INSTALL[package]}"


def require(*packages: str) -> None:
    """Raise LddganError naming the first package that is missing and its install line."""
    for package in packages:
        cause = why_missing(package)
        if cause is not None:
            raise LddganError(cause)
