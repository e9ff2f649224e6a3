"""CUDA graphs and events through the real cuda-core."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import pytest

from engine.gpu.device import Gpu
from engine.gpu.noise_kernel import NoiseKernel, consecutive, why_no_nvrtc
from lddgan.errors import LddganError
from lddgan.noise import sampler_noise
from tests import fake_cuda
from tests.engine.gpu.support import fake_only, on_each, same


@on_each
def test_a_graph_runs_at_its_launch_with_what_it_then_reads(gpu: Gpu) -> None:
    source, target = gpu.upload(np.full(4, 1.0)), gpu.upload(np.zeros(4))
    graph = gpu.capture(lambda: gpu.copy(target, source))
    assert gpu.download(target).tolist() == [0.0] * 4
    graph.launch()
    assert gpu.download(target).tolist() == [1.0] * 4
    gpu.write(source, np.full(4, 2.0))
    graph.launch()
    assert gpu.download(target).tolist() == [2.0] * 4


@on_each
def test_each_launch_sees_the_write_before_it(gpu: Gpu) -> None:
    source, targets = gpu.empty((1,), "uint64"), [gpu.empty((1,), "uint64") for _ in range(3)]
    graphs = [gpu.capture(lambda to=target: gpu.copy(to, source)) for target in targets]
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
        gpu.copy(y, x)
        fake_cuda.enqueue(gpu.handle, double)
        gpu.copy(x, y)

    graph = gpu.capture(program)
    for _ in range(3):
        graph.launch()
    assert gpu.download(x).tolist() == [0, 8, 16]


@on_each
def test_an_exception_in_a_capture_leaves_the_stream_usable(gpu: Gpu) -> None:
    source, target = gpu.upload(np.ones(4)), gpu.upload(np.zeros(4))

    def breaks() -> None:
        gpu.copy(target, source)
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose") as caught:
        gpu.capture(breaks)
    assert gpu.download(target).tolist() == [0.0] * 4, caught  # whose traceback holds the builder
    gpu.capture(lambda: gpu.copy(target, source)).launch()
    assert gpu.download(target).tolist() == [1.0] * 4


@on_each
def test_waiting_in_a_capture_fails_and_frees_the_stream(gpu: Gpu) -> None:
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
        gpu.copy(target, source)

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
        gpu.copy(target, source)

    gpu.capture(program).launch()
    assert gpu.download(target).tolist() == [1.0] * 4
    (result, address), success = asked[0], driver.CUresult.CUDA_SUCCESS
    assert result == success and driver.cuMemFree(address) == (success,)


@on_each
def test_the_kernel_of_the_noise_in_a_graph_follows_the_request(gpu: Gpu) -> None:
    missing = why_no_nvrtc()
    if missing is not None:
        pytest.skip(missing)
    count, latent, nz, steps = 3, (4, 3, 3), 10, 2
    request = gpu.empty((count, 2), "uint64")
    made = [
        gpu.empty(shape, "float32")
        for shape in ((count, *latent), (steps, count, nz), (steps, count, *latent))
    ]
    kernel = NoiseKernel(gpu.arch)
    graph = gpu.capture(lambda: kernel.launch(gpu.stream, request, *made))
    for seed, first in ((0, 0), (2**40 + 5, 2**33)):
        gpu.write(request, consecutive(seed, first, count))
        graph.launch()
        expected = sampler_noise(seed, first, count, latent_shape=latent, nz=nz, steps=steps)
        assert all(same(gpu.download(a), e) for a, e in zip(made, expected, strict=True))


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
