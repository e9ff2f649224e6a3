"""The device layer through the real cuda-core: on the fake driver, and on a GPU if there is one."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from engine.cuda.array import DeviceArray, is_contiguous
from engine.cuda.device import Gpu, handle_of, open_gpu
from engine.cuda.noise_kernel import NoiseKernel, require_nvrtc
from engine.select import why_no_gpu
from lddgan.errors import BadInput, LddganError, OutOfMemory
from lddgan.extras import why_missing
from lddgan.noise import sampler_noise
from tests import fake_cuda

fake_only = pytest.mark.fake_cuda
on_each = pytest.mark.parametrize(
    "where",
    [
        pytest.param("fake", marks=pytest.mark.fake_cuda),
        pytest.param("real", marks=pytest.mark.gpu),
    ],
)


@pytest.fixture
def where() -> str:
    return "fake"


@pytest.fixture
def gpu(where: str) -> Iterator[Gpu]:
    if where == "real":
        skip_without_gpu()
    opened = open_gpu()
    yield opened
    opened.close()


def skip_without_gpu() -> None:
    cause = why_no_gpu()
    if cause is not None:
        pytest.skip(cause)


def numbers(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape)


def copies(gpu: Gpu, source: DeviceArray, target: DeviceArray) -> None:
    """Queue a copy on the GPU."""
    target.buffer.copy_from(source.buffer, stream=gpu.stream)


def same(made: np.ndarray, expected: np.ndarray) -> bool:
    return (made.dtype, made.shape, made.tobytes()) == (
        expected.dtype,
        expected.shape,
        expected.tobytes(),
    )


# ---- memory and copies ----


@on_each
@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint8", "uint64"])
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4, 8, 8), (2, 1, 7)])
def test_what_is_uploaded_comes_back(gpu: Gpu, shape: tuple[int, ...], dtype: str) -> None:
    host = numbers(shape, dtype)
    array = gpu.upload(host)
    assert (array.shape, array.dtype, array.nbytes) == (shape, host.dtype, host.nbytes)
    assert same(gpu.download(array), host)


@on_each
def test_a_strided_host_array_is_uploaded_by_its_values(gpu: Gpu) -> None:
    host = numbers((6, 4), "int32").T[::2]
    assert same(gpu.download(gpu.upload(host)), np.ascontiguousarray(host))


@on_each
def test_what_was_downloaded_does_not_change_afterwards(gpu: Gpu) -> None:
    array = gpu.upload(numbers((100,), "float32", 1))
    first = gpu.download(array)
    gpu.write(array, numbers((100,), "float32", 2))
    second = gpu.download(array)
    assert same(first, numbers((100,), "float32", 1))
    assert same(second, numbers((100,), "float32", 2))


@on_each
def test_a_host_array_may_change_as_soon_as_write_returns(gpu: Gpu) -> None:
    array, host = gpu.empty((64,), "uint8"), numbers((64,), "uint8").copy()
    gpu.write(array, host)
    host[:] = 0
    assert same(gpu.download(array), numbers((64,), "uint8"))


@on_each
def test_two_writes_before_the_stream_has_finished_both_arrive(gpu: Gpu) -> None:
    array, kept = gpu.empty((2,), "uint64"), gpu.empty((2,), "uint64")
    gpu.write(array, np.array([1, 2], np.uint64))
    copies(gpu, array, kept)
    gpu.write(array, np.array([3, 4], np.uint64))
    assert gpu.download(kept).tolist() == [1, 2]
    assert gpu.download(array).tolist() == [3, 4]


@on_each
def test_a_longer_write_after_a_short_one_leaves_both_whole(gpu: Gpu) -> None:
    short, long = gpu.empty((3,), "int32"), gpu.empty((100_000,), "int32")
    gpu.write(short, np.array([7, 8, 9], np.int32))
    gpu.write(long, numbers((100_000,), "int32"))
    assert gpu.download(short).tolist() == [7, 8, 9]
    assert same(gpu.download(long), numbers((100_000,), "int32"))


@on_each
def test_views_share_the_memory(gpu: Gpu) -> None:
    host = numbers((5, 2, 3), "float32").copy()
    array = gpu.upload(host)
    row, rows = array[1], array[2:4]
    assert (len(array), row.shape, rows.shape) == (5, (2, 3), (2, 2, 3))
    assert (row.address - array.address, rows.address - array.address) == (24, 48)
    assert same(gpu.download(row), host[1])
    assert same(gpu.download(array[-1]), host[-1])
    host[2:4] = 1.5
    gpu.write(rows, host[2:4])
    assert same(gpu.download(array), host)
    assert same(gpu.download(array[1:][2]), host[3])


@on_each
def test_a_view_keeps_the_memory(gpu: Gpu) -> None:
    row = gpu.upload(numbers((4, 1000), "int32"))[3]
    gc.collect()
    others = [gpu.upload(np.zeros((4, 1000), np.int32)) for _ in range(8)]
    assert same(gpu.download(row), numbers((4, 1000), "int32")[3])
    assert len(others) == 8


@fake_only
@pytest.mark.parametrize("index", [slice(0, 4, 2), slice(2, 2), slice(None, None, -1)])
def test_rows_that_are_not_neighbours_are_refused(gpu: Gpu, index: slice) -> None:
    with pytest.raises(BadInput, match="neighbouring rows"):
        gpu.empty((4, 2), "uint8")[index]


@fake_only
def test_a_row_beyond_the_end_is_an_index_error(gpu: Gpu) -> None:
    with pytest.raises(IndexError):
        gpu.empty((4, 2), "uint8")[4]


@fake_only
@pytest.mark.parametrize("host", [np.zeros(3, np.float32), np.zeros((3, 1), np.float64)])
def test_what_does_not_fit_is_not_written(gpu: Gpu, host: np.ndarray) -> None:
    with pytest.raises(BadInput, match=r"expected float32 \[3, 1\]"):
        gpu.write(gpu.empty((3, 1), "float32"), host)


@fake_only
def test_an_array_of_nothing_is_refused(gpu: Gpu) -> None:
    with pytest.raises(BadInput, match=r"shape \[0, 3\] holds nothing"):
        gpu.empty((0, 3), "float32")


# ---- memory that is short ----


@on_each
def test_too_large_an_array_is_out_of_memory_and_the_next_is_not(gpu: Gpu) -> None:
    with pytest.raises(OutOfMemory, match=r"too little free memory for 1048576\.00 GiB"):
        gpu.empty((2**50,), "uint8")
    assert same(gpu.download(gpu.upload(numbers((9,), "uint8"))), numbers((9,), "uint8"))


@fake_only
def test_memory_that_was_freed_is_used_again(gpu: Gpu) -> None:
    fake_cuda.set_memory(fake_cuda.used() + 1000)
    assert gpu.memory() == (1000, fake_cuda.used() + 1000)
    for _ in range(3):
        array = gpu.empty((600,), "uint8")
        with pytest.raises(OutOfMemory):
            gpu.empty((600,), "uint8")
        del array


@on_each
def test_free_memory_is_at_most_all_of_it(gpu: Gpu) -> None:
    free, total = gpu.memory()
    assert 0 < free <= total and total >= 2**30


@fake_only
def test_closing_gives_everything_back_once(gpu: Gpu) -> None:
    before = fake_cuda.used()
    other = open_gpu()
    array = other.upload(numbers((1000,), "uint8"))
    assert fake_cuda.used() == before + 1000
    del array
    other.close()
    other.close()
    assert fake_cuda.used() == before


# ---- graphs ----


@on_each
def test_a_graph_runs_at_its_launch_with_what_it_then_reads(gpu: Gpu) -> None:
    source, target = gpu.upload(np.full(4, 1.0)), gpu.upload(np.zeros(4))
    graph = gpu.capture(lambda: copies(gpu, source, target))
    assert gpu.download(target).tolist() == [0.0] * 4
    graph.launch()
    assert gpu.download(target).tolist() == [1.0] * 4
    gpu.write(source, np.full(4, 2.0))
    graph.launch()
    assert gpu.download(target).tolist() == [2.0] * 4


@on_each
def test_each_launch_sees_the_write_before_it(gpu: Gpu) -> None:
    source, targets = gpu.empty((1,), "uint64"), [gpu.empty((1,), "uint64") for _ in range(3)]
    graphs = [gpu.capture(lambda to=target: copies(gpu, source, to)) for target in targets]
    for seed, graph in enumerate(graphs):
        gpu.write(source, np.array([seed], np.uint64))
        graph.launch()
    assert [gpu.download(target)[0] for target in targets] == [0, 1, 2]


@fake_only
def test_captured_work_of_other_libraries_runs_in_its_order(gpu: Gpu) -> None:
    x, y = gpu.upload(np.arange(3, dtype=np.int32)), gpu.empty((3,), "int32")

    def double() -> None:
        y_now = fake_cuda.as_numpy(y.address, y.shape, y.dtype)
        y_now[:] = 2 * y_now

    def program() -> None:
        copies(gpu, x, y)
        fake_cuda.enqueue(gpu.handle, double)
        copies(gpu, y, x)

    graph = gpu.capture(program)
    for _ in range(3):
        graph.launch()
    assert gpu.download(x).tolist() == [0, 8, 16]


@on_each
def test_an_exception_in_a_capture_leaves_the_stream_usable(gpu: Gpu) -> None:
    source, target = gpu.upload(np.ones(4)), gpu.upload(np.zeros(4))

    def breaks() -> None:
        copies(gpu, source, target)
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose") as caught:
        gpu.capture(breaks)
    assert gpu.download(target).tolist() == [0.0] * 4, caught  # whose traceback holds the builder
    gpu.capture(lambda: copies(gpu, source, target)).launch()
    assert gpu.download(target).tolist() == [1.0] * 4


@on_each
def test_waiting_in_a_capture_is_an_error_that_leaves_the_stream_usable(gpu: Gpu) -> None:
    target = gpu.upload(np.zeros(4))
    with pytest.raises(LddganError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        gpu.capture(gpu.synchronize)
    gpu.write(target, np.ones(4))
    assert gpu.download(target).tolist() == [1.0] * 4


@on_each
def test_an_error_that_a_capture_hides_is_found(gpu: Gpu) -> None:
    def hides() -> None:
        with pytest.raises(LddganError):
            gpu.synchronize()

    with pytest.raises(LddganError, match="cannot be captured as a CUDA graph"):
        gpu.capture(hides)
    assert gpu.download(gpu.upload(np.ones(4))).tolist() == [1.0] * 4


@on_each
@pytest.mark.parametrize("what", ["empty", "upload", "write", "download", "capture"])
def test_nothing_is_allocated_or_copied_to_the_host_in_a_capture(gpu: Gpu, what: str) -> None:
    array = gpu.upload(np.zeros(4))
    calls = {
        "empty": lambda: gpu.empty((4,), "float64"),
        "upload": lambda: gpu.upload(np.ones(4)),
        "write": lambda: gpu.write(array, np.ones(4)),
        "download": lambda: gpu.download(array),
        "capture": lambda: gpu.capture(gpu.synchronize),
    }
    with pytest.raises(LddganError, match="inside a capture"):
        gpu.capture(calls[what])
    assert gpu.download(array).tolist() == [0.0] * 4


@fake_only
def test_garbage_is_not_freed_into_a_graph(gpu: Gpu) -> None:
    class Knot:
        def __init__(self) -> None:
            self.array, self.itself = gpu.empty((10,), "uint8"), self

    gc.disable()  # so that both are still there when the capture begins
    Knot()
    knots = [Knot()]
    gc.enable()
    source, target = gpu.upload(np.ones(4)), gpu.upload(np.zeros(4))

    def program() -> None:
        knots.clear()
        _ = [[] for _ in range(100_000)]  # new objects, of which the collector takes notice
        copies(gpu, source, target)

    gpu.capture(program).launch()
    assert gpu.download(target).tolist() == [1.0] * 4
    assert gc.isenabled()


@on_each
def test_other_libraries_may_ask_for_memory_in_a_capture(gpu: Gpu) -> None:
    from cuda.bindings import driver

    source, target = gpu.upload(np.ones(4)), gpu.upload(np.zeros(4))

    asked: list[Any] = []

    def program() -> None:
        asked.append(driver.cuMemAlloc(64))
        copies(gpu, source, target)

    gpu.capture(program).launch()
    assert gpu.download(target).tolist() == [1.0] * 4
    (result, address), success = asked[0], driver.CUresult.CUDA_SUCCESS
    assert result == success and driver.cuMemFree(address) == (success,)


@on_each
def test_the_kernel_of_the_noise_in_a_graph_follows_the_request(gpu: Gpu) -> None:
    try:
        require_nvrtc()
    except LddganError as error:
        pytest.skip(str(error))
    count, latent, nz, steps = 3, (4, 3, 3), 10, 2
    request = gpu.empty((2,), "uint64")
    made = [
        gpu.empty(shape, "float32")
        for shape in ((count, *latent), (steps, count, nz), (steps, count, *latent))
    ]
    kernel = NoiseKernel(gpu.arch)
    graph = gpu.capture(lambda: kernel.launch(gpu.stream, request, *made))
    for seed, first in ((0, 0), (2**40 + 5, 2**33)):
        gpu.write(request, np.array([seed, first], np.uint64))
        graph.launch()
        expected = sampler_noise(seed, first, count, latent_shape=latent, nz=nz, steps=steps)
        assert all(same(gpu.download(a), e) for a, e in zip(made, expected, strict=True))


# ---- time ----


@on_each
def test_the_timer_measures_the_stream_and_not_the_host(gpu: Gpu) -> None:
    timer = gpu.timer()
    fake_cuda.enqueue(gpu.handle, lambda: None)
    start = timer.mark()
    fake_cuda.enqueue(gpu.handle, lambda: time.sleep(0.02))
    stop = timer.mark()
    time.sleep(0.02)
    after = timer.mark()
    assert timer.milliseconds(start, stop) >= 19.0
    assert timer.milliseconds(start, after) >= timer.milliseconds(start, stop)


# ---- other libraries' arrays ----


class Cai:
    """An array that offers `__cuda_array_interface__` only, as PyCUDA's do."""

    def __init__(self, array: DeviceArray, **changes: Any) -> None:
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}
        self.array = array


@on_each
@pytest.mark.parametrize("protocol", ["dlpack", "cuda_array_interface"])
def test_an_array_of_another_stream_is_used_in_place_and_in_order(gpu: Gpu, protocol: str) -> None:
    other = open_gpu()
    theirs = other.upload(np.zeros((3, 2), np.float32))
    other.write(theirs, np.arange(6, dtype=np.float32).reshape(3, 2))
    mine = gpu.view(theirs if protocol == "dlpack" else Cai(theirs))
    assert (mine.address, mine.shape, mine.dtype) == (theirs.address, (3, 2), np.float32)
    assert mine.stream == gpu.stream
    assert gpu.download(mine).tolist() == [[0, 1], [2, 3], [4, 5]]
    other.close()


@fake_only
def test_an_array_that_names_no_stream_waits_for_the_default_stream(gpu: Gpu) -> None:
    array = gpu.upload(np.zeros(3, np.int32))
    gpu.synchronize()

    def write() -> None:
        fake_cuda.as_numpy(array.address, (3,), "int32")[:] = 5

    fake_cuda.enqueue(1, write)
    assert gpu.download(gpu.view(Cai(array, stream=None))).tolist() == [5, 5, 5]


@on_each
def test_a_view_of_an_array_keeps_it_alive(gpu: Gpu) -> None:
    theirs = Cai(gpu.upload(np.arange(4)))
    alive = weakref.ref(theirs)
    mine = gpu.view(theirs)
    part = mine[1:3]
    del theirs, mine
    gc.collect()
    assert alive() is not None
    assert gpu.download(part).tolist() == [1, 2]
    del part
    gc.collect()
    assert alive() is None


@fake_only
def test_an_array_of_this_stream_is_its_own_view(gpu: Gpu) -> None:
    array = gpu.empty((2,), "uint8")
    assert gpu.view(array) is array


@fake_only
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (8, 16)}, "not C-contiguous"),
        ({"strides": (32, 4)}, "not C-contiguous"),
        ({"version": 2}, "cannot be read in place"),
        ({"mask": object()}, "cannot be read in place"),
    ],
)
def test_arrays_that_cannot_be_read_in_place_are_refused(
    gpu: Gpu, changes: dict[str, Any], message: str
) -> None:
    array = gpu.empty((2, 4), "float32")
    with pytest.raises(BadInput, match=message):
        gpu.view(Cai(array, **changes))


@fake_only
@pytest.mark.parametrize("array", [np.zeros(3), [1, 2], None])
def test_what_is_not_on_a_gpu_is_refused(gpu: Gpu, array: object) -> None:
    with pytest.raises(BadInput, match=r"not on a GPU|no array on a GPU"):
        gpu.view(array)


@fake_only
def test_a_torch_tensor_on_the_cpu_is_refused(gpu: Gpu) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(BadInput, match="the Tensor is not on a GPU; upload it first"):
        gpu.view(torch.zeros(3))


@pytest.mark.parametrize(
    ("shape", "strides", "contiguous"),
    [
        ((2, 3), None, True),
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), False),
        ((2, 3), (4, 1), False),
        ((1, 3), (99, 1), True),
        ((2, 1, 3), (3, 77, 1), True),
        ((), (), True),
    ],
)
def test_contiguity_is_that_of_numpy(
    shape: tuple[int, ...], strides: tuple[int, ...] | None, contiguous: bool
) -> None:
    assert is_contiguous(shape, strides) is contiguous
    if strides is not None:
        made = np.lib.stride_tricks.as_strided(np.zeros(200, np.uint8), shape, strides)
        assert made.flags.c_contiguous is contiguous


@on_each
def test_others_read_an_array_in_place_through_dlpack(gpu: Gpu) -> None:
    from cuda.core.utils import StridedMemoryView

    other = open_gpu()
    array = gpu.upload(np.zeros((4, 2, 3), np.float32))[1:3]
    gpu.write(array, np.ones((2, 2, 3), np.float32))  # still queued
    seen = StridedMemoryView.from_dlpack(array, stream_ptr=other.handle)
    assert (seen.ptr, seen.shape, seen.dtype) == (array.address, (2, 2, 3), np.float32)
    assert seen.device_id == 0 and is_contiguous(seen.shape, seen.strides)
    copy = other.empty(array.shape, array.dtype)
    copies(other, array, copy)
    assert (other.download(copy) == 1).all()
    other.close()


@on_each
def test_a_dlpack_capsule_says_where_the_array_is(gpu: Gpu) -> None:
    array = gpu.empty((2, 2), "int32")
    is_valid = ctypes.pythonapi.PyCapsule_IsValid
    is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]
    assert array.__dlpack_device__() == (2, 0)  # kDLCUDA, the first GPU
    assert is_valid(array.__dlpack__(stream=-1), b"dltensor")
    assert is_valid(array.__dlpack__(max_version=(1, 0)), b"dltensor_versioned")
    with pytest.raises(BufferError, match="forbids stream 0"):
        array.__dlpack__(stream=0)


@fake_only
def test_the_cuda_array_interface_is_version_3(gpu: Gpu) -> None:
    array = gpu.empty((2, 5), "uint64")[1]
    assert array.__cuda_array_interface__ == {
        "shape": (5,),
        "typestr": "<u8",
        "data": (array.address, False),
        "strides": None,
        "stream": gpu.handle,
        "version": 3,
    }


@pytest.mark.gpu
def test_pycuda_arrays_are_fed_and_read_without_copying() -> None:
    skip_without_gpu()
    pytest.importorskip("pycuda", reason='pycuda is not installed; pip install "lddgan[pycuda]"')
    import pycuda.autoprimaryctx  # makes the primary context current
    import pycuda.driver
    from pycuda import gpuarray

    stream = pycuda.driver.Stream()
    gpu = open_gpu(stream)
    assert gpu.handle == stream.handle
    theirs = gpuarray.to_gpu(np.arange(12, dtype=np.float32).reshape(3, 4))
    mine = gpu.view(theirs)
    assert mine.address == int(theirs.gpudata)
    gpu.write(mine[1], np.full(4, 7, np.float32))
    gpu.synchronize()
    assert theirs.get()[1].tolist() == [7.0] * 4

    made = gpu.upload(np.arange(5, dtype=np.int32))
    gpu.synchronize()
    seen = gpuarray.GPUArray(made.shape, made.dtype, gpudata=made.address, base=made)
    assert seen.get().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.gpu
def test_torch_tensors_are_fed_and_read_without_copying() -> None:
    skip_without_gpu()
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch is built without CUDA")
    stream = torch.cuda.Stream()
    gpu = open_gpu(stream)
    assert gpu.handle == stream.cuda_stream
    theirs = torch.arange(6, dtype=torch.float32, device="cuda").reshape(2, 3)
    mine = gpu.view(theirs)
    assert mine.address == theirs.data_ptr()
    assert gpu.download(mine).tolist() == [[0, 1, 2], [3, 4, 5]]
    made = gpu.upload(np.arange(4, dtype=np.int32))
    seen = torch.from_dlpack(made)
    assert seen.data_ptr() == made.address
    assert seen.tolist() == [0, 1, 2, 3]


# ---- streams ----


class TorchLike:
    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle


class PycudaLike:
    def __init__(self, handle: int) -> None:
        self.handle = handle


class Protocol:
    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


class ProtocolAttribute:
    def __init__(self, handle: int) -> None:
        self.__cuda_stream__ = (0, handle)


@on_each
@pytest.mark.parametrize("kind", [int, TorchLike, PycudaLike, Protocol, ProtocolAttribute])
def test_everything_runs_on_the_stream_handed_in(gpu: Gpu, kind: type) -> None:
    theirs = kind(gpu.handle)
    used = open_gpu(theirs)
    assert used.handle == gpu.handle
    source, target = used.upload(np.ones(3)), used.upload(np.zeros(3))
    used.capture(lambda: copies(used, source, target)).launch()
    assert used.download(target).tolist() == [1.0] * 3
    used.close()
    assert gpu.download(gpu.upload(np.ones(3))).tolist() == [1.0] * 3  # it is still open


@on_each
def test_a_stream_of_cuda_core_is_taken(gpu: Gpu) -> None:
    used = open_gpu(gpu.stream)
    assert used.stream == gpu.stream
    assert used.download(used.upload(np.ones(3))).tolist() == [1.0] * 3


@on_each
def test_streams_of_their_own_differ_and_do_not_wait_for_the_default_one(gpu: Gpu) -> None:
    other = open_gpu()
    assert other.handle != gpu.handle
    assert other.stream.is_nonblocking and gpu.stream.is_nonblocking
    other.close()


@fake_only
@pytest.mark.parametrize("stream", [0, 1, TorchLike(0), PycudaLike(0)])
def test_the_default_stream_is_refused(gpu: Gpu, stream: object) -> None:
    with pytest.raises(BadInput, match="default stream cannot be captured"):
        open_gpu(stream)


@fake_only
def test_a_stream_of_another_context_is_refused(gpu: Gpu) -> None:
    with pytest.raises(BadInput, match=r"pycuda\.autoprimaryctx"):
        open_gpu(fake_cuda.foreign_stream())


def test_what_is_no_stream_is_refused() -> None:
    with pytest.raises(BadInput, match="list is no CUDA stream"):
        handle_of([1])


# ---- opening ----


@fake_only
def test_a_gpu_says_what_it_is(gpu: Gpu) -> None:
    assert (gpu.name, gpu.compute_capability, gpu.arch) == ("Fake GPU", "9.0", "sm_90")


def opening_fails_with(**environment: str) -> str:
    """What another process says whose driver is set so."""
    program = (
        "from engine.cuda.device import open_gpu\n"
        "from lddgan.errors import LddganError\n"
        "try: open_gpu()\n"
        "except LddganError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@fake_only
def test_a_driver_that_is_too_old_is_named_with_the_one_that_is_needed() -> None:
    assert opening_fails_with(LDDGAN_FAKE_VERSION="12040") == (
        "the NVIDIA driver is too old for CUDA 13 (it runs 12.4): update it to 580 or newer"
    )


@fake_only
def test_a_driver_without_a_gpu_says_so() -> None:
    assert opening_fails_with(LDDGAN_FAKE_INIT="100") == (
        "the NVIDIA driver shows no GPU; look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    )


@fake_only
@pytest.mark.parametrize(
    ("setting", "code", "name"),
    [
        ("LDDGAN_FAKE_INIT", "803", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ("LDDGAN_FAKE_CONTEXT", "2", "CUDA_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_a_gpu_that_cannot_be_used_says_what_the_driver_said(
    setting: str, code: str, name: str
) -> None:
    assert opening_fails_with(**{setting: code}).startswith(f"the GPU cannot be used ({name}); ")


def test_a_machine_without_a_driver_says_so() -> None:
    missing = why_missing("cuda.core")
    if missing is not None:
        pytest.skip(missing)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert opening_fails_with() == (
            "no NVIDIA driver is installed here (libcuda.so.1 is missing); "
            "install driver 580 or newer"
        )
    else:
        pytest.skip("there is a driver here")
