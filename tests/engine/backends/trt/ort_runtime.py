"""TensorRT's runtime, played by ONNX Runtime in the memory of the fake GPU. A plan is an ONNX file.

It refuses what TensorRT refuses: a batch outside the profile, tensors without an address or at one
that is not aligned, memory that is not there, and a capture without a run of the same context
before it.  Between the runs the activations' memory is filled with rubbish.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from engine.backends.trt.library import Library
from export.graphs import GraphSpec
from tests.engine.backends.trt.scripted import WEAK, Script, Severity
from tests.fake_cuda import as_numpy, enqueue

BYTES_PER_IMAGE = 1000  # of activations, whatever the graph
RUBBISH = 0xEE
ALIGNMENT = 256  # of a tensor; that of the activations' memory is 512


class Machine:
    """What the contexts of a test did."""

    def __init__(self, specs: dict[str, GraphSpec], most: int = 100) -> None:
        self.specs, self.most = specs, most  # the largest batch that plans take
        self.contexts: list[Context] = []
        self.addresses = 0  # calls of set_tensor_address
        self.runs: list[tuple[str, int]] = []  # graph and batch, as they were computed
        self.built: list[str] = []  # for tests whose builder says so
        self.tuned: list[int] = []  # batches, for tests whose tuning says so
        self.spoiled = False  # images come out darker

    def library(self, version: str) -> Library:
        library = Script(self.specs).library(version)
        machine = self

        class Runtime:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def deserialize_cuda_engine(self, plan: bytes) -> Engine:
                return Engine(machine, self.logger, plan)

        library.module.Runtime = Runtime
        if version != WEAK:
            library.module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)
        self.context_class: type[Context] = Context8 if version == WEAK else Context10
        return library


class Engine:
    device_memory_size = 100 * BYTES_PER_IMAGE  # asked of 8.6 only

    def __init__(self, machine: Machine, logger: Any, plan: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            plan, options, providers=["CPUExecutionProvider"]
        )
        self.machine, self.logger = machine, logger
        output = self.session.get_outputs()[0].name
        self.which = next(n for n, s in machine.specs.items() if s.outputs[0].name == output)

    def create_execution_context(self, strategy: int) -> Any:
        assert strategy == 2
        return self._context()

    def create_execution_context_without_device_memory(self) -> Any:
        return self._context()

    def _context(self) -> Any:
        self.machine.contexts.append(self.machine.context_class(self))
        return self.machine.contexts[-1]


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.batch = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.has_run = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        self.batch = max(self.batch, shape[0])
        return shape[0] <= self.engine.machine.most

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.engine.machine.addresses += 1
        if address % ALIGNMENT:
            return False
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if is_capturing(stream) and not self.has_run:
            self.engine.logger.log(
                Severity.ERROR, "Cuda Runtime (operation not permitted when stream is capturing)"
            )
            return False
        self.has_run = True
        addresses, (address, size) = dict(self.addresses), self.memory
        assert size >= self.needed() and address % (2 * ALIGNMENT) == 0
        enqueue(stream, lambda: self.compute(addresses, address, size))
        return True

    def needed(self) -> int:
        return BYTES_PER_IMAGE * self.batch

    def compute(self, addresses: dict[str, int], memory: int, size: int) -> None:
        spec = self.engine.machine.specs[self.engine.which]
        inputs = {
            tensor.name: as_numpy(
                addresses[tensor.name], self.shapes[tensor.name], tensor.dtype
            ).copy()
            for tensor in spec.inputs
        }
        (result,) = self.engine.session.run(None, inputs)
        as_numpy(memory, (size,), "uint8")[:] = RUBBISH
        if self.engine.machine.spoiled and result.dtype == np.uint8:
            result //= 2
        name = spec.outputs[0].name
        as_numpy(addresses[name], result.shape, result.dtype)[:] = result
        self.engine.machine.runs.append((self.engine.which, self.batch))


class Context8(Context):
    def needed(self) -> int:
        return Engine.device_memory_size

    @property
    def device_memory(self) -> int:
        return self.memory[0]

    @device_memory.setter
    def device_memory(self, address: int) -> None:
        self.memory = (address, Engine.device_memory_size)


class Context10(Context):
    def update_device_memory_size_for_shapes(self) -> int:
        return self.needed()

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)


def is_capturing(stream: int) -> bool:
    status = ctypes.c_int()
    driver = ctypes.CDLL("libcuda.so.1")
    assert driver.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(status)) == 0
    return status.value != 0
