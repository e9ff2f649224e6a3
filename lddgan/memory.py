"""Memory that runs out: how each library says so, and one sentence for it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lddgan.errors import LddganError, OutOfMemory

SAID: Final = (  # the text is all that tells such an error from others
    "bad_alloc",  # C++: PyTorch, ONNX Runtime, OpenVINO
    "bad allocation",  # the same on Windows
    "can't alloc",  # OpenVINO; PyTorch's allocator of the CPU: "can't allocate memory"
    "not enough memory",  # the same on Windows
    "cannot allocate memory",
    "failed to allocate memory",  # ONNX Runtime
    "out of memory",  # CUDA and its libraries
    "out_of_memory",  # oneDNN
    "could not create a primitive",  # the same
    "can't start new thread",  # Python
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a CPU or a GPU ran out, or comes of one that did."""
    if isinstance(error, LddganError):
        return isinstance(error, OutOfMemory)
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    before, text = error.__context__, str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in SAID):
        return True
    return before is not None and is_out_of_memory(before)  # torch.save closes its file and fails


@contextmanager
def memory_named(told: str) -> Iterator[None]:
    """Raise OutOfMemory, with `told`, if memory runs out; "{}" in it is "the GPU" or "the CPU"."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if isinstance(error, LddganError) or not is_out_of_memory(error):
            raise
        of_gpu = type(error).__name__ == "OutOfMemoryError" or "cuda" in str(error).lower()
        place = "the GPU" if of_gpu else "the CPU"
        raise OutOfMemory(told.format(place)) from error
