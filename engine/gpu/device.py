"""One GPU and one stream on it: memory, copies and CUDA graphs on cuda-core, without PyTorch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.gpu.array import LEGACY_STREAM, DeviceArray, check_fits, view_of
from engine.gpu.noise_kernel import why_no_nvrtc
from engine.gpu.stream import EventTimer, Graph, Staging, capture, reported
from engine.requirements import why_unusable
from lddgan.errors import BadInput, LddganError
from lddgan.extras import require, version_of

__all__ = ["DeviceArray", "Gpu", "Graph", "open_gpu", "reported"]

LEAST_DRIVER: Final = {12: 525, 13: 580}  # CUDA's major version -> the NVIDIA driver it needs
LEAST_CUDA_CORE: Final = (1, 2)  # older ones report a full GPU by errors of other kinds
GIB: Final = 2**30


def open_gpu(stream: object | None = None) -> Gpu:
    """Open the first GPU that CUDA_VISIBLE_DEVICES leaves and make it current in this thread.

    Everything runs on `stream`: one of its own (None), or that of a cuda-core, torch or PyCUDA
    stream, of anything with `__cuda_stream__`, or of a handle (int), which the caller keeps open.

    Raises LddganError, with what mends it, if there is no usable driver or GPU, and BadInput for
    the default stream, which cannot be captured, or a stream of another CUDA context.
    """
    require("cuda.core", "cuda.bindings")
    too_old = why_old_cuda_core() or why_old_driver()
    if too_old is not None:
        raise LddganError(too_old)
    device = _first_device()
    return Gpu(device, _stream_on(device, stream), owns_stream=stream is None)


class Gpu:
    """A GPU and the stream on which everything asked of it runs, in order.

    Methods return when the work is queued, except `download` and `synchronize`, which wait.  They
    raise OutOfMemory where memory is short, and LddganError where the GPU or its driver fails.
    """

    def __init__(self, device: Any, stream: Any, *, owns_stream: bool) -> None:
        self.device = device  # cuda.core.Device
        self.stream = stream  # cuda.core.Stream
        self.name = str(device.name)
        self.compute_capability = "{}.{}".format(*device.compute_capability)  # such as 9.0
        self.arch = f"sm_{device.arch}"  # such as sm_90
        self._owns_stream, self._capturing, self._closed = owns_stream, False, False
        self._outgoing, self._incoming = Staging(stream), Staging(stream)

    @property
    def handle(self) -> int:
        """The stream's CUstream, as TensorRT takes it."""
        return int(self.stream.handle)

    def memory(self) -> tuple[int, int]:
        """Bytes of GPU memory: free, and in all."""
        from cuda.bindings import driver

        result, free, total = driver.cuMemGetInfo()
        if result != driver.CUresult.CUDA_SUCCESS:
            raise LddganError(f"the GPU does not say how much memory it has: {result.name}")
        return int(free), int(total)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """Allocate an array. Raises OutOfMemory, or LddganError inside a capture."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size == 0:
            raise BadInput(f"an array of shape {list(shape)} holds nothing")
        self._must_not_be_capturing()
        with reported(f"{size / GIB:.2f} GiB"):
            buffer = self.device.allocate(size, stream=self.stream)
        return DeviceArray(buffer, tuple(shape), dtype, self.stream)

    def upload(self, array: NDArray[Any]) -> DeviceArray:
        """Copy a host array, which may be changed as soon as this returns."""
        target = self.empty(array.shape, array.dtype)
        self.write(target, array)
        return target

    def write(self, target: DeviceArray, array: NDArray[Any]) -> None:
        """Overwrite an array with a host array of its shape and dtype, which may be changed after.

        The contents wait in one pinned buffer until the stream comes to the copy; a second call
        waits for that before it fills the buffer again. Raises BadInput if shape or dtype differ.
        """
        check_fits(array, target)
        self._must_not_be_capturing()
        with reported("pinned memory"), self._outgoing.borrow(target.nbytes) as staged:
            staged.bytes[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            target.buffer.copy_from(staged.buffer, stream=self.stream)

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """Copy an array to the host when the stream has made it."""
        self._must_not_be_capturing()
        with reported("pinned memory"), self._incoming.borrow(array.nbytes) as staged:
            array.buffer.copy_to(staged.buffer, stream=self.stream)
            self.stream.sync()
            return staged.bytes.copy().view(array.dtype).reshape(array.shape)

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Overwrite an array with another of its shape and dtype on this GPU."""
        with reported():
            target.buffer.copy_from(source.buffer, stream=self.stream)

    def view(self, array: Any) -> DeviceArray:
        """View an array on this GPU of PyCUDA, CuPy, numba or torch. It is kept alive.

        The stream waits for what makes its contents. Raises BadInput if it is not on this GPU, not
        C-contiguous, or offers neither `__cuda_array_interface__` (3) nor `__dlpack__`.
        """
        if isinstance(array, DeviceArray) and array.stream == self.stream:
            return array
        return view_of(array, self.stream, int(self.device.device_id))

    def synchronize(self) -> None:
        """Wait until the stream has done everything."""
        with reported():
            self.stream.sync()

    def timer(self) -> EventTimer:
        """The stream's own clock."""
        return EventTimer(self.stream)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Capture what `enqueue` puts on the stream as a graph, without running it.

        `enqueue` has run once before, so that it allocates, loads and frees nothing now, and it
        does not wait for the stream. The caller keeps alive what it reads and writes. If it raises,
        the stream is usable again. Raises LddganError if the work cannot be captured.
        """
        self._must_not_be_capturing()
        self._capturing = True
        try:
            return capture(self.stream, enqueue)
        finally:
            self._capturing = False

    def close(self) -> None:
        """Wait for the stream; give back pinned memory and, if it is our own, the stream."""
        if self._closed:
            return
        self.synchronize()
        self._closed = True
        self._outgoing.close()
        self._incoming.close()
        if self._owns_stream:
            self.stream.close()

    def _must_not_be_capturing(self) -> None:
        if self._capturing:
            raise LddganError(
                "memory is neither allocated nor copied to or from the host inside a capture; "
                "do it before"
            )


def why_no_cuda_core() -> str | None:
    """Why memory, streams or the noise kernel cannot be used. Returns None if they can."""
    return why_unusable("cuda.core") or why_old_cuda_core() or why_old_driver() or why_no_nvrtc()


def why_old_cuda_core() -> str | None:
    """Why the installed cuda-core is too old. Returns None if it is not."""
    found = version_of("cuda-core") or "0"
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    if numbers >= LEAST_CUDA_CORE:
        return None
    least = ".".join(map(str, LEAST_CUDA_CORE))
    return f"cuda-core {found} is too old; pip install 'cuda-core>={least}'"


def why_old_driver() -> str | None:
    """Why the driver is too old for the installed CUDA packages. Returns None if it is not."""
    from cuda.bindings import driver
    from cuda.pathfinder import DynamicLibNotFoundError

    major = driver.CUDA_VERSION // 1000
    try:
        _, version = driver.cuDriverGetVersion()
    except DynamicLibNotFoundError:
        return (
            "no NVIDIA driver is installed here (libcuda.so.1 is missing); "
            f"install driver {LEAST_DRIVER[major]} or newer"
        )
    if version // 1000 >= major:
        return None
    return (
        f"the NVIDIA driver is too old for CUDA {major} (it runs {version // 1000}."
        f"{version % 1000 // 10}): update it to {LEAST_DRIVER[major]} or newer"
    )


def _first_device() -> Any:
    from cuda.core import Device
    from cuda.core._utils.cuda_utils import CUDAError

    try:
        device = Device(0)
        device.set_current()
    except CUDAError as error:
        name = str(error).partition(":")[0]
        if name in ("CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_INVALID_DEVICE"):
            raise LddganError(
                "the NVIDIA driver shows no GPU; look at nvidia-smi and CUDA_VISIBLE_DEVICES"
            ) from error
        raise LddganError(
            f"the GPU cannot be used ({name}); it may be full, in exclusive use by another process "
            "(nvidia-smi lists them), or its driver was updated and waits for a restart"
        ) from error
    return device


class _Borrowed(NamedTuple):
    """The caller's stream, kept alive, in the form that cuda-core takes."""

    owner: object
    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def _stream_on(device: Any, given: object | None) -> Any:
    if given is None:
        return device.create_stream()  # does not wait for the default stream
    handle = handle_of(given)
    if handle in (0, LEGACY_STREAM):
        raise BadInput(
            "the default stream cannot be captured as a CUDA graph; pass another, such as "
            "torch.cuda.Stream()"
        )
    stream = device.create_stream(_Borrowed(given, handle))
    if stream.context != device.context:
        raise BadInput(
            "the stream belongs to a CUDA context of its own; use the primary one, with PyCUDA "
            "pycuda.autoprimaryctx instead of pycuda.autoinit"
        )
    return stream


def handle_of(stream: Any) -> int:
    """The CUstream of a cuda-core, torch or PyCUDA stream, or of a handle. Raises BadInput."""
    if isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        said = stream.__cuda_stream__
        return int((said() if callable(said) else said)[1])
    for name in ("cuda_stream", "handle"):  # torch, PyCUDA
        if hasattr(stream, name):
            return int(getattr(stream, name))
    raise BadInput(f"{type(stream).__name__} is no CUDA stream of torch, cuda-core or PyCUDA")
