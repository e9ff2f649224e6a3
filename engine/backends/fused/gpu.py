"""PyTorch on one stream of a GPU: its settings, CUDA graphs, and the noise kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, NamedTuple, TypeVar

import torch
import triton
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from engine.gpu.device import handle_of, open_gpu
from engine.gpu.noise_kernel import NoiseKernel
from engine.gpu.stream import no_garbage_collection
from engine.timing import Timer
from lddgan.names import Precision
from lddgan.torch_settings import exact_fp32

T = TypeVar("T")
CAPTURE: Final = "thread_local"  # what other threads do meanwhile is theirs


class TorchGpu:
    """The first GPU and one stream on it, of its own or the caller's (`open_gpu` says which)."""

    def __init__(self, stream: object | None) -> None:
        """Raises LddganError if there is no usable GPU, BadInput for the default stream."""
        self.torch_device = torch.device("cuda", 0)
        self.stream = torch_stream(stream, self.torch_device)
        self.gpu = open_gpu(self.stream)
        self.where = f"{self.gpu.name} (PyTorch {torch.__version__}, Triton {triton.__version__})"
        self.kernel = NoiseKernel(self.gpu.arch)
        self.pool = torch.cuda.graph_pool_handle()  # of all graphs, which run one after the other

    @contextmanager
    def active(self, precision: Precision) -> Iterator[None]:
        """Send PyTorch's calls to the stream and let cuDNN measure its algorithms.

        fp32 is computed without TF32. The settings are restored afterwards.
        """
        exact = precision == "fp32"
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=not exact)
        whole = exact_fp32() if exact else nullcontext()
        with torch.cuda.stream(self.stream), whole, flags:
            yield

    def capture(self, program: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        """Capture what `program` puts on the stream. Returns the graph and the result.

        `program` has run before. The result lies in the graph's memory: every replay, of this graph
        or another, overwrites it.
        """
        graph = torch.cuda.CUDAGraph()
        captured = torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode=CAPTURE
        )
        with no_garbage_collection(), captured:
            made = program()
        return graph, made

    def draw(self, request: Tensor, x_T: Tensor, z: Tensor, noise: Tensor) -> None:
        """Launch the noise kernel; request is int64, else as in `NoiseKernel.launch`."""
        asked = _Array.of(request)._replace(dtype="uint64")
        self.kernel.launch(self.gpu.stream, asked, *map(_Array.of, (x_T, z, noise)))

    def view(self, array: Any) -> Tensor:
        """Use an array on the GPU as a tensor of the same memory."""
        return from_dlpack(self.gpu.view(array))

    def download(self, array: Tensor) -> NDArray[Any]:
        """Copy a tensor to the host, through pinned memory."""
        host = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
        host.copy_(array, non_blocking=True)
        self.stream.synchronize()
        return host.numpy()

    def synchronize(self) -> None:
        self.stream.synchronize()

    def timer(self) -> Timer:
        return self.gpu.timer()

    def close(self) -> None:
        """Wait for the stream, and give back pinned memory and what PyTorch caches."""
        self.gpu.close()
        torch.cuda.empty_cache()


class _Array(NamedTuple):
    """A tensor as the noise kernel takes it."""

    address: int
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> _Array:
        assert tensor.is_contiguous(), tensor.stride()
        name = str(tensor.dtype).removeprefix("torch.")
        return cls(tensor.data_ptr(), tuple(tensor.shape), name)


def torch_stream(given: object | None, device: torch.device) -> torch.cuda.Stream:
    """Make a stream, or PyTorch's view of a given one."""
    cuda: Any = torch.cuda
    if given is None:
        return cuda.Stream(device)
    if isinstance(given, torch.cuda.Stream):
        return given
    return cuda.ExternalStream(handle_of(given), device)
