"""Running the fused networks: eagerly, and on a GPU the whole sampler as one CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.backend import Backend, Inputs, Program
from engine.backends.fused.networks import FixedImage, FusedImage, FusedStep, in_precision
from engine.backends.fused.reference import PLAIN, Ops
from engine.graphed import Graphed, Recorded
from engine.requirements import one_line
from engine.timing import Timer
from engine.tuning import Tuning
from export.graphs import MAX_BATCH
from lddgan.checkpoint import Model
from lddgan.errors import LddganError
from lddgan.names import Device, Precision
from lddgan.torch_settings import pytorch_memory_named, where

DTYPES: Final[dict[Precision, torch.dtype]] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class FusedBackend(Backend):
    """The fused networks, step by step, on any device.

    On a CPU plain PyTorch stands for the kernels.
    """

    name = "fused"
    device: Device = "cpu"

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
        self.errors = ops.errors
        with self.running():
            learned = model.preset.autoencoder.learned
            image = partial(FusedImage, ops=ops) if learned else FixedImage
            self.generator, self.decoder = (
                in_precision(network, DTYPES[precision]).to(self.torch_device)
                for network in (
                    FusedStep(model.generator, model.preset, ops),
                    image(model.autoencoder, model.preset),
                )
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the engine's work without gradients. Raises OutOfMemory or LddganError."""
        with torch.inference_mode(), failures_named(self.errors), pytorch_memory_named():
            yield

    def upload(self, array: NDArray[Any]) -> Tensor:
        with self.running():
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.torch_device)

    def step(self, x: Tensor, t: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        with self.running():
            return self.generator(x, t, z, noise)

    def decode(self, x_0: Tensor) -> Tensor:
        return self.decode_in(x_0, len(x_0))

    def decode_in(self, x_0: Tensor, chunk: int) -> Tensor:
        """Decode `chunk` images at a time."""
        with self.running():
            made = [self.decoder(part) for part in torch.split(x_0, chunk)]
            return made[0] if len(made) == 1 else torch.cat(made)

    def download(self, array: Tensor) -> NDArray[Any]:
        return array.cpu().numpy()

    def close(self) -> None:
        del self.generator, self.decoder


@contextmanager
def failures_named(errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Raise LddganError for an error of PyTorch, or one of `errors`."""
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
    """The cause in one line. Triton keeps it apart from the source that it prints."""
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
    def timer(self) -> Timer: ...
    def close(self) -> None: ...


class FusedOnGpu(Graphed, FusedBackend):
    """The fused networks on one stream of a GPU."""

    device: Device = "cuda"
    decode_in = FusedBackend.decode_in

    def __init__(
        self,
        model: Model,
        precision: Precision,
        ops: Ops,
        gpu: Gpu,
        *,
        cuda_graph: bool,
        tuning: Tuning,
    ) -> None:
        self.gpu = gpu
        self.precision = precision  # of `running`
        FusedBackend.__init__(self, model, precision, ops, gpu.torch_device)
        Graphed.__init__(self, model.preset, tuning, captures=cuda_graph)
        self.where = gpu.where
        self.request = self.upload(np.zeros((MAX_BATCH, 2), np.int64))  # read by every launch

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

    def timer(self) -> Timer:
        return self.gpu.timer()

    def synchronize(self) -> None:
        self.gpu.synchronize()

    def ask(self, request: NDArray[np.uint64]) -> None:
        host = torch.from_numpy(request.astype(np.int64))
        with self.running():
            self.request[: len(host)].copy_(host, non_blocking=True)

    def noise(self, count: int) -> Inputs:
        preset = self.preset
        calls, latent, nz = preset.steps, preset.latent_shape, preset.generator.nz
        shapes = ((count, *latent), (calls, count, nz), (calls, count, *latent))
        with self.running():
            x_T, z, noise = (torch.empty(shape, device=self.torch_device) for shape in shapes)
            self.gpu.draw(self.request, x_T, z, noise)
            return Inputs(x_T, list(z), list(noise))

    def record(self, program: Program, size: int) -> Recorded:
        """Run the program once to compile, choose algorithms and warm up, then capture it."""
        with self.running():
            program(self.draw(self.preset, 0, 0, size))
            graph, made = self.gpu.capture(lambda: program(self.noise(size)))

        def launch() -> None:
            with self.running():
                graph.replay()

        return Recorded(launch, made, graph)

    def close(self) -> None:
        Graphed.close(self)
        FusedBackend.close(self)
        del self.request
        self.gpu.close()
