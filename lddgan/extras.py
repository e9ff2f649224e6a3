"""What this machine has: optional packages, with the line that installs each, and cores."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Final

from lddgan.errors import LddganError

TRAIN: Final = ("torch", "safetensors", "onnx", "onnxscript", "lmdb", "sklearn", "tensorboard")
SERVE: Final = ("starlette", "uvicorn", "prometheus_client")
INSTALL: Final = dict.fromkeys(TRAIN, 'pip install -e ".[train]"') | {  # lddgan is on no index
    **dict.fromkeys(SERVE, 'pip install -e ".[serve]"'),
    "matplotlib": 'pip install -e ".[plot]"',
    "triton": "pip install triton (PyTorch for CUDA on Linux brings the right one)",
    "cuda.bindings": 'pip install -e ".[gpu]"',
    "cuda.core": 'pip install -e ".[gpu]"',
    "openvino": 'pip install -e ".[cpu]"',
    "onnxruntime": 'pip install -e ".[cpu]" (or ".[gpu]")',
}


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution, or None. PyTorch's names its build: 2.11.0+cu130."""
    from importlib.metadata import PackageNotFoundError, version  # slow: `--help` has no use for it

    if distribution == "torch" and why_missing("torch") is None:
        import torch

        return str(torch.__version__)
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


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


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
