"""Loading libraries and graphs that may be broken: an error is one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from export.graphs import GraphSpec
from lddgan.errors import BadInput, LddganError
from lddgan.extras import why_missing

LONGEST_CAUSE: Final = 400  # characters of a library's own words in one sentence


def import_library(package: str, remedy: str) -> Any:
    """Import an installed package. Raises LddganError, with the remedy, if it cannot be loaded."""
    try:
        return import_module(package)
    except (ImportError, OSError) as error:  # most often of the libraries that it binds
        raise LddganError(
            f"{package} is installed but cannot be loaded ({one_line(str(error))}); {remedy}"
        ) from error


def why_unusable(package: str) -> str | None:
    """Why `package` cannot be imported. Returns None if it can."""
    missing = why_missing(package)
    if missing is not None:
        return missing
    try:
        import_library(package, "install it again")
    except LddganError as error:
        return str(error)
    return None


def why_no_torch_cuda() -> str | None:
    """Why PyTorch cannot use a GPU. Returns None if it can."""
    unusable = why_unusable("torch")
    if unusable is not None:
        return unusable
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "the installed torch is built without CUDA"
    return f"torch {torch.__version__} is built for CUDA {torch.version.cuda} and finds no GPU"


def check_tensors(
    found: Iterable[tuple[str, tuple[int | str, ...], str]], spec: GraphSpec, path: Path
) -> None:
    """Raise BadInput unless a file's tensors (name, shape, dtype) are those of `spec`."""
    held = list(found)
    expected = [
        (tensor.name, tensor.shape, tensor.dtype) for tensor in (*spec.inputs, *spec.outputs)
    ]
    if held != expected:
        raise BadInput(f"{path} has the tensors {held}, its manifest says {expected}")


def one_line(text: str) -> str:
    """Shorten a library's error text to part of one sentence."""
    words = " ".join(text.split()).rstrip(".")
    return words if len(words) <= LONGEST_CAUSE else words[:LONGEST_CAUSE] + "..."
