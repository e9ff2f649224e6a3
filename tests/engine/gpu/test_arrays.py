"""Other libraries' arrays, read and lent in place, through the real cuda-core."""

from __future__ import annotations

import ctypes
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.gpu.array import DeviceArray, is_contiguous
from engine.gpu.device import Gpu, open_gpu
from engine.registry import open_engine, survey
from lddgan.errors import BadInput
from lddgan.noise import draw
from tests import fake_cuda
from tests.engine.gpu.support import fake_only, on_each, skip_without_gpu


class Cai:
    """An array that offers `__cuda_array_interface__` only, as PyCUDA's do."""

    def __init__(self, array: DeviceArray, **changes: Any) -> None:
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}
        self.array = array


@on_each
@pytest.mark.parametrize("protocol", ["dlpack", "cuda_array_interface"])
def test_an_array_of_another_stream_is_used_in_order(gpu: Gpu, protocol: str) -> None:
    other = open_gpu()
    theirs = other.upload(np.zeros((3, 2), np.float32))
    other.write(theirs, np.arange(6, dtype=np.float32).reshape(3, 2))
    mine = gpu.view(theirs if protocol == "dlpack" else Cai(theirs))
    assert (mine.address, mine.shape, mine.dtype) == (theirs.address, (3, 2), np.float32)
    assert mine.stream == gpu.stream
    assert gpu.download(mine).tolist() == [[0, 1], [2, 3], [4, 5]]
    other.close()


@fake_only
def test_an_array_without_a_stream_waits_for_the_default(gpu: Gpu) -> None:
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
    other.copy(copy, array)
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


NO_PYCUDA = 'pycuda is not installed; pip install -e ".[pycuda]"'


@pytest.mark.gpu
def test_pycuda_arrays_are_fed_and_read_without_copying() -> None:
    skip_without_gpu()
    pytest.importorskip("pycuda", reason=NO_PYCUDA)
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
@pytest.mark.parametrize("engine", ["trt", "fused"])
def test_an_engine_runs_on_a_stream_and_noise_of_pycuda(tiny_bundle: Path, engine: Any) -> None:
    for candidate in survey(engine):
        if candidate.why_not is not None:
            pytest.skip(candidate.why_not)
    pytest.importorskip("pycuda", reason=NO_PYCUDA)
    import pycuda.autoprimaryctx
    import pycuda.driver
    from pycuda import gpuarray

    stream = pycuda.driver.Stream()
    sampler = open_engine(tiny_bundle, engine, "fp32", batch=3, stream=stream)
    drawn = draw(sampler.preset, 0, 3)
    theirs = [gpuarray.to_gpu(np.ascontiguousarray(array)) for array in drawn]
    image = sampler.make_from(*theirs).image
    stream.synchronize()
    address = image.__cuda_array_interface__["data"][0]
    seen = gpuarray.GPUArray(tuple(image.shape), np.uint8, gpudata=address, base=image).get()
    assert seen.std() > 1
    assert np.abs(seen.astype(int) - sampler.run(*drawn)).max() <= 1


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
