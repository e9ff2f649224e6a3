"""What runs on one stream of a GPU: graphs, events and copies through pinned memory."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lddgan.errors import LddganError, OutOfMemory


@contextmanager
def reported(asked_for: str = "what it needs") -> Iterator[None]:
    """Turn an error of CUDA into one sentence; `asked_for` names the memory that was asked for."""
    from cuda.core._utils.cuda_utils import CUDAError

    try:
        yield
    except CUDAError as error:
        name = str(error).partition(":")[0]
        if name == "CUDA_ERROR_OUT_OF_MEMORY":
            raise OutOfMemory(
                f"the GPU has too little free memory for {asked_for}; "
                "make fewer images at once, or stop what else uses it (nvidia-smi lists it)"
            ) from error
        raise LddganError(
            f"the GPU reports {name}; run again, and if it comes back restart the machine"
        ) from error


class Graph:
    """Captured work; `launch` repeats it on the stream that it was captured from."""

    def __init__(self, graph: Any, stream: Any) -> None:
        self._graph, self._stream = graph, stream

    def launch(self) -> None:
        with reported():
            self._graph.launch(self._stream)

    def close(self) -> None:
        self._graph.close()


def capture(stream: Any, enqueue: Callable[[], None]) -> Graph:
    """Capture what `enqueue` puts on the stream. `Gpu.capture` says what it may do."""
    with reported(), no_garbage_collection():
        builder = stream.create_graph_builder()
        # TensorRT may load modules or ask for memory while it enqueues, even after a warm-up;
        # the modes global and thread_local make that an error, and global in every thread.
        builder.begin_building("relaxed")
        with _closed_on_error(builder):
            enqueue()
            _end(builder)
            graph = builder.complete()
        graph.upload(stream)
    return Graph(graph, stream)


@contextmanager
def _closed_on_error(builder: Any) -> Iterator[None]:
    """End the capture if the body raises, so that the stream can be used again."""
    from cuda.core._utils.cuda_utils import CUDAError

    whole = False
    try:
        yield
        whole = True
    finally:
        if not whole:
            with suppress(CUDAError):  # says that the capture failed, which is known
                builder.close()


def _end(builder: Any) -> None:
    try:
        builder.end_building()
    except RuntimeError as error:  # an error inside was swallowed
        raise LddganError(
            "the work cannot be captured as a CUDA graph: something in it waits for the GPU or "
            "uses the default stream"
        ) from error


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Stop the garbage collector: a capture would record the arrays that it frees."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class EventTimer:
    """Marks in the work of a stream, timed by the GPU."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def mark(self) -> Any:
        """Mark the moment when everything queued so far is done."""
        from cuda.core import EventOptions

        with reported():
            return self._stream.record(options=EventOptions(timing_enabled=True))

    def milliseconds(self, start: Any, stop: Any) -> float:
        """Milliseconds from one mark to a later one, which is waited for."""
        with reported():
            stop.sync()
            return float(stop - start)


class Staged(NamedTuple):
    bytes: NDArray[np.uint8]
    buffer: Any  # cuda.core.Buffer of the same memory


class Staging:
    """One pinned buffer for all copies, which wait for each other. It grows as needed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._memory: Any = None  # cuda.core.Buffer
        self._copied: Any = None  # event after the last copy

    @contextmanager
    def borrow(self, size: int) -> Iterator[Staged]:
        """Lend `size` bytes that no copy is using. The next call waits for the copy inside."""
        from cuda.core import Buffer

        self._wait()
        if self._memory is None or self._memory.size < size:
            self._grow(size)
        address = int(self._memory.handle)
        raw = (ctypes.c_uint8 * size).from_address(address)
        yield Staged(
            np.ctypeslib.as_array(raw), Buffer.from_handle(address, size, owner=self._memory)
        )
        self._copied = self._stream.record()

    def close(self) -> None:
        self._wait()
        if self._memory is not None:
            self._memory.close()
        self._memory = None

    def __del__(self) -> None:
        self._wait()  # before the memory is freed under a copy that is still queued

    def _wait(self) -> None:
        if self._copied is not None:
            self._copied.sync()
        self._copied = None

    def _grow(self, size: int) -> None:
        from cuda.core import LegacyPinnedMemoryResource

        self.close()
        self._memory = LegacyPinnedMemoryResource().allocate(size)
