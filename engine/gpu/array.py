"""Arrays in GPU memory: our own, or views of other libraries' arrays, which read them in place."""

from __future__ import annotations

import math
from typing import Any, Final, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lddgan.errors import BadInput

DLPACK_CUDA: Final = (2, 13)  # kDLCUDA, kDLCUDAManaged
LEGACY_STREAM: Final = 1  # the handle of the default stream, which DLPack's None stands for
NO_ORDER: Final = -1  # DLPack: the consumer orders the streams itself


class DeviceArray:
    """A C-contiguous array on the GPU; `stream` is where its contents are made and used.

    Other libraries read and write it in place: PyCUDA, CuPy, numba and torch take it through
    `__cuda_array_interface__` or `__dlpack__`, and their stream then waits for this one.
    `array[3]` and `array[1:3]` are views of the same memory, which they keep alive.
    """

    def __init__(self, buffer: Any, shape: tuple[int, ...], dtype: DTypeLike, stream: Any) -> None:
        self.buffer = buffer  # cuda.core.Buffer of exactly this array's bytes
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.stream = stream  # cuda.core.Stream

    @property
    def address(self) -> int:
        return int(self.buffer.handle)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: SupportsIndex | slice) -> DeviceArray:
        """View one row (without its axis) or neighbouring rows of the first axis."""
        from cuda.core import Buffer

        rows = range(len(self))[index]
        if isinstance(rows, int):
            first, shape = rows, self.shape[1:]
        else:
            first, shape = rows.start, (len(rows), *self.shape[1:])
            if rows.step != 1 or not rows:
                raise BadInput(f"{index} of {len(self)} rows is not one or more neighbouring rows")
        start = self.address + first * (self.nbytes // len(self))
        size = math.prod(shape) * self.dtype.itemsize
        part = Buffer.from_handle(start, size, owner=self.buffer)
        return DeviceArray(part, shape, self.dtype, self.stream)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),  # not read-only
            "strides": None,
            "stream": int(self.stream.handle),
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._strided().__dlpack_device__()
        return device

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        """Make a DLPack capsule; the consumer's `stream` waits for this array's stream.

        Raises BufferError for stream 0, which DLPack forbids as ambiguous.
        """
        from cuda.core import Stream

        if stream == 0:
            raise BufferError("DLPack forbids stream 0: it is 1 (legacy) or 2 (per thread)")
        if stream != NO_ORDER:
            consumer = Stream.from_handle(LEGACY_STREAM if stream is None else stream)
            consumer.wait(self.stream)
        return self._strided().__dlpack__(stream=NO_ORDER, **options)

    def _strided(self) -> Any:
        from cuda.core.utils import StridedMemoryView

        return StridedMemoryView.from_buffer(
            self.buffer, self.shape, itemsize=self.dtype.itemsize, dtype=self.dtype
        )


def view_of(array: Any, stream: Any, device_id: int) -> DeviceArray:
    """View another library's array without copying it; it is kept alive.

    `stream` waits for the stream that makes the contents. Raises BadInput if the array is not on
    this GPU, not C-contiguous or not of numbers.
    """
    from cuda.core import Buffer

    seen = _strided_view(array, stream)
    if seen.device_id != device_id:
        raise BadInput(f"the array is on GPU {seen.device_id}, and the engine on GPU {device_id}")
    if seen.dtype is None or not is_contiguous(seen.shape, seen.strides):
        raise BadInput(
            f"the array of shape {list(seen.shape)} is not C-contiguous; pass a copy that is"
        )
    size = math.prod(seen.shape) * seen.dtype.itemsize
    buffer = Buffer.from_handle(seen.ptr, size, owner=seen)
    return DeviceArray(buffer, tuple(seen.shape), seen.dtype, stream)


def _strided_view(array: Any, stream: Any) -> Any:
    from cuda.core import LEGACY_DEFAULT_STREAM
    from cuda.core.utils import StridedMemoryView

    kind = type(array).__name__
    offers_dlpack = hasattr(array, "__dlpack_device__")
    if not offers_dlpack and not hasattr(array, "__cuda_array_interface__"):
        raise BadInput(
            f"{kind} is no array on a GPU: it has neither __cuda_array_interface__ nor __dlpack__"
        )
    if offers_dlpack and array.__dlpack_device__()[0] not in DLPACK_CUDA:
        raise BadInput(f"the {kind} is not on a GPU; upload it first")
    if not offers_dlpack and array.__cuda_array_interface__.get("stream") is None:
        # PyCUDA names no stream, although its work may still be queued in the default one.
        stream.wait(LEGACY_DEFAULT_STREAM)
    try:
        return StridedMemoryView.from_any_interface(array, stream_ptr=int(stream.handle))
    except (BufferError, TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"the {kind} cannot be read in place: {error}") from error


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    """Whether strides (in elements; None means contiguous) are those of a C-contiguous array."""
    if strides is None:
        return True
    step = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True


def check_fits(array: NDArray[Any], target: DeviceArray) -> None:
    """Raise BadInput unless the host array has the target's shape and dtype."""
    if array.shape != target.shape or array.dtype != target.dtype:
        raise BadInput(
            f"the array is {array.dtype} {list(array.shape)}, "
            f"expected {target.dtype} {list(target.shape)}"
        )
