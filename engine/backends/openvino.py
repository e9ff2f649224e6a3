"""OpenVINO, on any CPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.backend import Backend, Engine
from engine.requirements import check_tensors, one_line, why_unusable
from export.bundle import Bundle, graph_file
from export.graphs import BATCH, graph_specs
from lddgan.errors import BadInput, LddganError, OutOfMemory
from lddgan.memory import is_out_of_memory
from lddgan.names import Precision

DEVICE: Final = "CPU"
OPTIONS: Final = {
    "INFERENCE_PRECISION_HINT": "f32",  # it would take bf16 where the CPU has it
    "PERFORMANCE_HINT": "LATENCY",  # all cores for one call
}
MOST_SIZES: Final = 2  # batch sizes that stay compiled; the one unused for longest is dropped
PLACES: Final = ("Exception from ", "Check '", "FrontEnd API failed")  # lines of its errors
REFUSALS: Final = (  # of openvino.frontend
    "GeneralFailure",
    "InitializationFailure",
    "NotImplementedFailure",
    "OpConversionFailure",
    "OpValidationFailure",
)

Array = NDArray[Any]


class OpenVinoBackend(Backend):
    """The two graphs of a bundle, compiled for each batch size.

    Compiled for all sizes at once, the cifar10 generator is a fifth slower.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, bundle: Bundle, precision: Precision) -> None:
        import openvino

        self.precision = precision
        specs = graph_specs(bundle.preset)
        self.core = openvino.Core()
        self.models = {which: read_model(bundle.graph(which, precision)) for which in specs}
        for which, spec in specs.items():
            path = bundle.folder / graph_file(which, precision)
            check_tensors(tensors(self.models[which]), spec, path)
        self.specs = specs
        self.compiled: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self.where = f"CPU (OpenVINO {openvino.__version__.partition('-')[0]})"

    def upload(self, array: Array) -> Array:
        return np.ascontiguousarray(array)

    def step(self, x: Array, t: Array, z: Array, noise: Array) -> Array:
        return self._run("generator", x, t, z, noise)

    def decode(self, x_0: Array) -> Array:
        return self._run("decoder", x_0)

    def download(self, array: Array) -> Array:
        return array

    def prepare(self, batch: int) -> None:
        with suppress(OutOfMemory):  # raised again, and the chunk halved, when images are made
            self.requests(batch)

    def close(self) -> None:
        self.compiled.clear()
        self.models.clear()
        del self.core

    def _run(self, which: str, *inputs: Array) -> Array:
        request = self.requests(len(inputs[0]))[which]
        with failures_named(f"in the {which}"):
            (output,) = request.infer(list(inputs)).values()
        return output

    def requests(self, batch: int) -> dict[str, Any]:
        """Compile the two graphs for `batch` images, which takes seconds the first time.

        Raises OutOfMemory or LddganError.
        """
        if batch not in self.compiled:
            while len(self.compiled) >= MOST_SIZES:
                self.compiled.popitem(last=False)
            with failures_named(f"to compile for batch {batch}"):
                self.compiled[batch] = {
                    which: self._compile(which, batch).create_infer_request()
                    for which in self.models
                }
        self.compiled.move_to_end(batch)
        return self.compiled[batch]

    def _compile(self, which: str, batch: int) -> Any:
        model = self.models[which]
        model.reshape(
            {
                tensor.name: [batch if size == BATCH else size for size in tensor.shape]
                for tensor in self.specs[which].inputs
            }
        )
        return self.core.compile_model(model, DEVICE, OPTIONS)


@contextmanager
def failures_named(where: str) -> Iterator[None]:
    """Raise OutOfMemory or LddganError for an error of OpenVINO."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        kind = OutOfMemory if is_out_of_memory(error) else LddganError
        raise kind(f"OpenVINO failed {where}: {why(error)}") from error


def read_model(path: Path) -> Any:
    """Read a graph. Raises BadInput if OpenVINO does not take the file."""
    from openvino import frontend

    reader = frontend.FrontEndManager().load_by_framework("onnx")
    refusals = [getattr(frontend, name) for name in REFUSALS]
    try:
        return reader.convert(reader.load(path))
    except (*refusals, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"OpenVINO has too little memory for {path}") from error
        raise BadInput(f"OpenVINO does not take {path}: {why(error)}") from error


def tensors(model: Any) -> Iterator[tuple[str, tuple[int | str, ...], str]]:
    """Name, shape and dtype of every input and output; an open size is the batch."""
    for port in (*model.inputs, *model.outputs):
        shape = [BATCH if size.is_dynamic else size.get_length() for size in port.partial_shape]
        yield port.get_any_name(), tuple(shape), port.element_type.to_dtype().name


def why(error: Exception) -> str:
    """The cause, without the places in OpenVINO's source code."""
    lines = [line for line in str(error).splitlines() if not line.startswith(PLACES)]
    return one_line(" ".join(lines)) or type(error).__name__


ENGINE = Engine(
    label="OpenVINO",
    color="#0987a0",
    precisions={"cpu": ("fp32", "fp16", "int8")},
    why_not=lambda device: why_unusable("openvino"),
    open=lambda request: OpenVinoBackend(request.bundle, request.precision),
    packages=("openvino",),
)
