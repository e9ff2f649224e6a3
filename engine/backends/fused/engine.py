"""Running the fused networks: eagerly, and on a GPU the whole sampler as one CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.backend import Backend, Inputs, Made, Program
from engine.backends.fused.networks import FusedImage, FusedStep, in_precision
from engine.backends.fused.reference import PLAIN, Ops
from engine.backends.pytorch import memory_named, where
from engine.graphed import MOST_GRAPHS, captured_size, fastest_chunk
from engine.requirements import one_line
from lddgan.checkpoint import Model
from lddgan.errors import LddganError
from lddgan.names import Precision
from lddgan.preset import Preset

DTYPES: Final[dict[Precision, torch.dtype]] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class FusedBackend(Backend):
    """The fused networks, step by step: on a CPU, where plain PyTorch stands for the kernels."""

    name = "fused"
    device = "cpu"

    def __init__(
        self,
        model: Model,
        precision: Precision,
        ops: Ops = PLAIN,
        torch_device: torch.device | None = None,
    ) -> None:
        """`torch_device` is where the tensors are; None is the CPU."""
        self.precision: Precision = precision
        self.preset = model.preset
        self.torch_device = torch_device or torch.device("cpu")
        self.where = where("cpu", precision)
        self.chunks: dict[int, int] = {}  # of the decoder, by batch
        self.errors = ops.errors
        with self.running():
            self.generator, self.decoder = (
                in_precision(network, DTYPES[precision]).to(self.torch_device)
                for network in (
                    FusedStep(model.generator, model.preset, ops),
                    FusedImage(model.autoencoder, model.preset, ops),
                )
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """How everything of the engine runs. Raises OutOfMemory or LddganError."""
        with torch.inference_mode(), failures_named(self.errors), memory_named():
            yield

    def upload(self, array: NDArray[Any]) -> Tensor:
        with self.running():
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.torch_device)

    def step(self, x: Tensor, t: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        with self.running():
            return self.generator(x, t, z, noise)

    def decode(self, x_0: Tensor) -> Tensor:
        return self._decode(x_0, self.decoder_chunk(len(x_0)))

    def _decode(self, x_0: Tensor, chunk: int) -> Tensor:
        with self.running():
            made = [self.decoder(part) for part in torch.split(x_0, chunk)]
            return made[0] if len(made) == 1 else torch.cat(made)

    def download(self, array: Tensor) -> NDArray[Any]:
        return array.cpu().numpy()

    def decoder_chunk(self, batch: int) -> int:
        """Images that the decoder takes at once: what `tune` found, else the whole batch."""
        return self.chunks.get(batch, batch)


@contextmanager
def failures_named(errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Raises LddganError for an error of PyTorch, or one of `errors`."""
    known: tuple[type[Exception], ...] = (RuntimeError, *errors)
    try:
        yield
    except LddganError:
        raise
    except known as error:
        raise LddganError(
            f"the fused engine failed: {why(error)}; --engine torch runs without it"
        ) from error


def why(error: BaseException) -> str:
    """The cause in a line; errors of Triton have it apart from the source that they show."""
    text = getattr(error, "error_message", None) or str(error)
    return one_line(text.strip().partition("\n")[0]) or type(error).__name__


class Captured(Protocol):
    """A CUDA graph (torch.cuda.CUDAGraph)."""

    def replay(self) -> None: ...


class Gpu(Protocol):
    """What `engine.backends.fused.gpu.TorchGpu` offers: PyTorch on one stream of one GPU."""

    torch_device: torch.device
    where: str  # device and libraries, for people

    def active(self, precision: Precision) -> AbstractContextManager[None]: ...
    def capture(self, program: Any) -> tuple[Captured, Any]: ...
    def draw(self, request: Tensor, x_T: Tensor, z: Tensor, noise: Tensor) -> None: ...
    def view(self, array: Any) -> Tensor: ...
    def download(self, array: Tensor) -> NDArray[Any]: ...
    def synchronize(self) -> None: ...
    def timer(self) -> Any: ...


class Recorded(NamedTuple):
    """A captured run of the program, and what it makes."""

    graph: Captured
    made: Made


class FusedOnGpu(FusedBackend):
    """The fused networks on one GPU stream.

    With `cuda_graph`, `run` draws the noise, takes T steps and decodes in one launch of a graph
    that is captured once per batch size.  What it returns is valid until the next call; everything
    else returns new tensors.
    """

    device = "cuda"
    draws_on_host = False

    def __init__(
        self, model: Model, precision: Precision, ops: Ops, gpu: Gpu, *, cuda_graph: bool
    ) -> None:
        self.gpu, self.fused = gpu, cuda_graph
        self.precision: Precision = precision  # of `running`
        super().__init__(model, precision, ops, gpu.torch_device)
        self.where = gpu.where
        self.request = self.upload(np.zeros(2, np.int64))  # seed, first index: read by every launch
        self.recorded: dict[int, Recorded] = {}  # by batch size, the last used last

    @contextmanager
    def running(self) -> Iterator[None]:
        with self.gpu.active(self.precision), super().running():
            yield

    def view(self, array: Any) -> Tensor:
        with self.running():
            return self.gpu.view(array)

    def download(self, array: Tensor) -> NDArray[Any]:
        with self.running():
            return self.gpu.download(array)

    def timer(self) -> Any:
        return self.gpu.timer()

    # ---- noise ----

    def draw(self, preset: Preset, seed: int, first: int, count: int) -> Inputs:
        self._ask(seed, first)
        return self._noise(preset, count)

    def _ask(self, seed: int, first: int) -> None:
        with self.running():
            self.request[0], self.request[1] = seed, first  # two launches, which wait for nothing

    def _noise(self, preset: Preset, count: int) -> Inputs:
        """The noise of the images that `request` holds."""
        calls, latent, nz = preset.steps, preset.latent_shape, preset.generator.nz
        shapes = ((count, *latent), (calls, count, nz), (calls, count, *latent))
        with self.running():
            x_T, z, noise = (torch.empty(shape, device=self.torch_device) for shape in shapes)
            self.gpu.draw(self.request, x_T, z, noise)
            return Inputs(x_T, list(z), list(noise))

    # ---- the sampler as one graph ----

    def run(self, program: Program, preset: Preset, seed: int, first: int, count: int) -> Made:
        if not self.fused:
            return super().run(program, preset, seed, first, count)
        size = captured_size(self.recorded, count, self.least)
        recorded = self.recorded.pop(size, None) or self._record(program, preset, size)
        self.recorded[size] = recorded
        self._ask(seed, first)
        with self.running():
            recorded.graph.replay()
            return Made(recorded.made.x_0[:count], recorded.made.image[:count])

    def _record(self, program: Program, preset: Preset, size: int) -> Recorded:
        """Run the program once to compile, choose algorithms and warm up, then capture it."""
        if len(self.recorded) == MOST_GRAPHS:
            self.gpu.synchronize()  # it may be running
            self.recorded.pop(next(iter(self.recorded)))
        with self.running():
            program(self.draw(preset, 0, 0, size))
            return Recorded(*self.gpu.capture(lambda: program(self._noise(preset, size))))

    # ---- the decoder's chunk ----

    def facts(self) -> dict[str, Any]:
        """What a benchmark row says of how it runs."""
        return {"decoder_chunk": {str(batch): size for batch, size in self.chunks.items()}}

    def tune(self, batch: int) -> int:
        """Time the decoder at `batch` images in several chunks and keep the fastest.

        Raises OutOfMemory if none fits.
        """
        shape = (batch, *self.preset.latent_shape)
        x_0 = self.upload(np.random.default_rng(0).standard_normal(shape, np.float32))
        self.chunks[batch] = fastest_chunk(
            self.timer(), lambda chunk: self._decode(x_0, chunk), batch, self.least
        )
        return self.chunks[batch]
