"""A closed TensorRT engine gives the GPU's memory and its stream back."""

from __future__ import annotations

import pytest

from tests.engine.backends.trt import test_sampling
from tests.engine.backends.trt.ort_runtime import Machine

_one_gpu, trt = test_sampling._one_gpu, test_sampling.trt  # the fixtures
machine = test_sampling.machine

pytestmark = pytest.mark.fake_cuda


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_memory_goes_back(trt, machine: Machine, cuda_graph: bool) -> None:
    from tests.fake_cuda import used

    before = used()
    for _ in range(10):
        with trt(cuda_graph=cuda_graph) as sampler:
            sampler.sample(2)
            assert used() > before
        del sampler
        machine.contexts.clear()
    assert used() == before
