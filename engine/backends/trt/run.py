"""Running TensorRT plans: contexts bound once, the whole sampler as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.backend import Inputs, Made, Program
from engine.backends.trt.library import ICudaEngine, IExecutionContext, Library, Logger
from engine.backends.trt.plans import PlanSet
from engine.gpu.device import DeviceArray, Gpu
from engine.gpu.noise_kernel import NoiseKernel, consecutive
from engine.graphed import Graphed, Recorded
from engine.timing import Timer
from engine.verification import Verification
from export.graphs import BATCH, MAX_BATCH, GraphSpec, TensorSpec, graph_specs
from lddgan.errors import BadInput
from lddgan.preset import Preset

ALIGNMENT: Final = 256  # bytes; TensorRT refuses other addresses of tensors

T = TypeVar("T")


class Memory:
    """One block for the activations of all contexts, which run one after the other."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.block: DeviceArray | None = None

    def at_least(self, size: int) -> DeviceArray:
        """Return a block of `size` bytes or more. Earlier blocks stay with their contexts."""
        if self.block is None or self.block.nbytes < size:
            self.block = self.gpu.empty((max(size, 1),), "uint8")
        return self.block


class Context:
    """One graph of the bundle at one batch size, and the arrays bound to it."""

    def __init__(
        self,
        library: Library,
        logger: Logger,
        engine: ICudaEngine,
        spec: GraphSpec,
        batch: int,
        memory: Memory,
    ) -> None:
        self.library, self.logger = library, logger
        self.inputs, (self.output,) = spec.inputs, spec.outputs
        self.context: IExecutionContext = library.create_context(engine, logger)
        for tensor in spec.inputs:
            if not self.context.set_input_shape(tensor.name, shape_of(tensor, batch)):
                raise library.error(logger, f"TensorRT refused batch {batch} for {tensor.name}")
        self.gpu = memory.gpu
        self.memory = memory.at_least(library.memory_needed(engine, self.context))
        library.set_memory(self.context, self.memory.address, self.memory.nbytes)
        self.bound: dict[str, DeviceArray] = {}  # kept alive
        self.copies: dict[str, DeviceArray] = {}  # for arrays that are not aligned

    def enqueue(self, stream: int, arrays: Sequence[DeviceArray]) -> None:
        """Run on `stream`; `arrays` are the inputs and then the outputs of the graph's table."""
        *inputs, output = arrays
        for tensor, array in zip(self.inputs, inputs, strict=True):
            aligned = self._bind(tensor.name, array)
            if aligned is not array:
                self.gpu.copy(aligned, array)
        aligned = self._bind(self.output.name, output)
        if not self.context.execute_async_v3(stream):
            raise self.library.error(self.logger, "TensorRT could not run the graph")
        if aligned is not output:
            self.gpu.copy(output, aligned)

    def _bind(self, name: str, array: DeviceArray) -> DeviceArray:
        """Bind the array, or a copy if its address is not aligned (that of z[1] may not be)."""
        if array.address % ALIGNMENT:
            if name not in self.copies:
                self.copies[name] = self.gpu.empty(array.shape, array.dtype)
            array = self.copies[name]
        held = self.bound.get(name)
        is_new = held is None or held.address != array.address
        if is_new and not self.context.set_tensor_address(name, array.address):
            raise self.library.error(self.logger, f"TensorRT refused the address of {name}")
        self.bound[name] = array
        return array


class Tape:
    """What a run of the program allocates and binds, in order, for the next run to find again."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.position = 0

    def next(self, make: Callable[[], T]) -> T:
        if self.position == len(self.items):
            self.items.append(make())
        self.position += 1
        found: T = self.items[self.position - 1]
        return found

    def rewind(self) -> None:
        self.position = 0


class TrtBackend(Graphed):
    """The two plans of a bundle on one GPU stream."""

    def __init__(
        self,
        gpu: Gpu,
        library: Library,
        plans: PlanSet,
        preset: Preset,
        *,
        cuda_graph: bool,
    ) -> None:
        super().__init__(preset, plans.tuning, captures=cuda_graph)
        self.gpu, self.library, self.plans = gpu, library, plans
        self.specs = graph_specs(preset)
        self.name, self.precision = library.name, plans.key.precision
        self.where = f"{gpu.name} ({library})"
        self.least, self.most = plans.key.profile.min, plans.key.profile.max
        self.logger = library.logger()
        self.engines = {
            which: library.deserialize(self.logger, plans.read(which)) for which in self.specs
        }
        self.memory = Memory(gpu)
        self.kernel = NoiseKernel(gpu.arch)
        self.request = gpu.empty((MAX_BATCH, 2), "uint64")  # what a graph reads anew
        self.contexts: dict[tuple[str, int], Context] = {}  # of runs that are not captured
        self.tape: Tape | None = None  # while a run is recorded

    # ---- the two graphs ----

    def step(self, x: DeviceArray, t: DeviceArray, z: DeviceArray, noise: DeviceArray) -> Any:
        x_next = self._output("generator", len(x))
        self._context("generator", len(x)).enqueue(self.gpu.handle, (x, t, z, noise, x_next))
        return x_next

    def decode_in(self, x_0: DeviceArray, chunk: int) -> DeviceArray:
        image = self._output("decoder", len(x_0))
        for start in range(0, len(x_0), chunk):
            part = slice(start, min(start + chunk, len(x_0)))
            context = self._context("decoder", part.stop - part.start)
            context.enqueue(self.gpu.handle, (x_0[part], image[part]))
        return image

    def upload(self, array: NDArray[Any]) -> DeviceArray:
        return self.gpu.upload(array)

    def view(self, array: Any) -> DeviceArray:
        return self.gpu.view(array)

    def download(self, array: DeviceArray) -> NDArray[Any]:
        return self.gpu.download(array)

    def timer(self) -> Timer:
        return self.gpu.timer()

    def synchronize(self) -> None:
        self.gpu.synchronize()

    # ---- noise ----

    def ask(self, request: NDArray[np.uint64]) -> None:
        self.gpu.write(self.request[: len(request)], request)

    def noise(self, count: int) -> Inputs:
        preset = self.preset
        calls, latent, nz = preset.steps, preset.latent_shape, preset.generator.nz
        x_T = self._array((count, *latent), "float32")
        z = self._array((calls, count, nz), "float32")
        noise = self._array((calls, count, *latent), "float32")
        self.kernel.launch(self.gpu.stream, self.request, x_T, z, noise)
        return Inputs(x_T, [z[k] for k in range(calls)], [noise[k] for k in range(calls)])

    # ---- the sampler as one graph ----

    def record(self, program: Program, size: int) -> Recorded:
        self.tape = Tape()
        try:
            self.ask(consecutive(0, 0, size))
            program(self.noise(size))
            self.gpu.synchronize()
            self.tape.rewind()
            made: list[Made] = []
            graph = self.gpu.capture(lambda: made.append(program(self.noise(size))))
            return Recorded(graph.launch, made[0], self.tape)
        finally:
            self.tape = None

    def _array(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        return self._kept(lambda: self.gpu.empty(shape, dtype))

    def _output(self, which: str, batch: int) -> DeviceArray:
        tensor = self.specs[which].outputs[0]
        return self._array(shape_of(tensor, batch), tensor.dtype)

    def _context(self, which: str, batch: int) -> Context:
        """Return a context: one for every call of a recorded run, so that no address changes."""
        if self.tape is not None:
            return self.tape.next(lambda: self._new_context(which, batch))
        if (which, batch) not in self.contexts:
            self.contexts[which, batch] = self._new_context(which, batch)
        return self.contexts[which, batch]

    def _new_context(self, which: str, batch: int) -> Context:
        profile = self.plans.key.profile
        if not profile.holds(batch):
            raise BadInput(
                f"batch {batch}, the engine {self.plans.folder.name} takes {profile.min}.."
                f"{profile.max}; `lddgan build --batch` makes another"
            )
        made = Context(
            self.library, self.logger, self.engines[which], self.specs[which], batch, self.memory
        )
        if self.tape is not None:
            self.library.check_capturable(made.context, self.gpu.handle)
        return made

    def _kept(self, make: Callable[[], T]) -> T:
        return make() if self.tape is None else self.tape.next(make)

    # ---- what is kept beside the plans ----

    def facts(self) -> dict[str, Any]:
        key, found = self.plans.key, self.plans.verification()
        return super().facts() | {
            "verification": None if found is None else found.model_dump(mode="json"),
            "library": str(self.library),
            "profile": str(key.profile),
            "level": key.level,
            "flags": list(key.flags),
            "build_seconds": dict(self.plans.record.seconds),
        }

    def kernels(self) -> str:
        return f"{self.plans.digests} {self.chunks}"

    def keep(self, verification: Verification) -> None:
        self.plans.save_verification(verification)

    def prepare(self, batch: int) -> None:
        """As `Graphed.prepare`; also passes over chunks that the profile does not hold."""
        try:
            super().prepare(batch)
        finally:
            self._forget_contexts()

    def close(self) -> None:
        super().close()
        self.contexts.clear()
        self.engines.clear()
        del self.memory, self.request  # freed on the stream, before that is closed
        self.gpu.close()

    def _forget_contexts(self) -> None:
        """Drop the contexts of runs that are not captured, and the block that they share."""
        self.gpu.synchronize()
        self.contexts.clear()
        self.memory = Memory(self.gpu)


def shape_of(tensor: TensorSpec, batch: int) -> tuple[int, ...]:
    """The shape of a tensor of the table at one batch size."""
    return tuple(batch if size == BATCH else size for size in tensor.shape)
