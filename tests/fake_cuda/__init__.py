"""A fake CUDA driver, so that the real cuda-core runs where there is no GPU.

A test marked `fake_cuda` runs in a child process that finds the driver of libcuda.cpp (plugin.py).
Its GPU is host memory, and its streams do nothing before they are waited for.  In such a test:

    enqueue(stream, function)        queue a Python function, or capture it into a graph
    as_numpy(address, shape, dtype)  what lies in the GPU's memory now, to read or write
    set_memory(size), used()         bytes of the GPU, and those that are allocated
    foreign_stream()                 a stream of another CUDA context

A function that is queued reads and writes through `as_numpy`; that is how a stand-in for
`execute_async_v3(stream)` does what TensorRT does.  Kernels are those of kernels.cpp.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike, NDArray

Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_callbacks: list[object] = []  # graphs may call them again at any time


def enqueue(stream: int, function: Callable[[], None]) -> None:
    """Queue a function on a stream (a handle), as cuLaunchHostFunc does."""
    _callbacks.append(Callback(lambda _: function()))
    result = _driver().cuLaunchHostFunc(ctypes.c_void_p(stream), _callbacks[-1], None)
    assert result == 0, f"cuLaunchHostFunc returned {result}"


def as_numpy(address: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
    """The fake GPU's memory itself; what is not allocated there is an error."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    assert _driver().fake_is_allocated(ctypes.c_uint64(address), ctypes.c_size_t(size)), (
        f"{size} bytes at {address:#x} are not allocated"
    )
    raw = (ctypes.c_uint8 * size).from_address(address)
    return np.ctypeslib.as_array(raw).view(dtype).reshape(shape)


def set_memory(size: int) -> None:
    _driver().fake_set_memory(ctypes.c_size_t(size))


def used() -> int:
    size = ctypes.c_size_t()
    _driver().fake_used(ctypes.byref(size))
    return size.value


def foreign_stream() -> int:
    handle = ctypes.c_void_p()
    _driver().fake_foreign_stream(ctypes.byref(handle))
    assert handle.value is not None
    return handle.value


def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
