"""Memory and copies through the real cuda-core."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from engine.gpu.device import Gpu, open_gpu
from lddgan.errors import BadInput, OutOfMemory
from tests import fake_cuda
from tests.engine.gpu.support import fake_only, numbers, on_each, same


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
    gpu.copy(kept, array)
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
