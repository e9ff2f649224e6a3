"""PyTorch's convolutions with Triton kernels between them, as an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from engine.backend import Backend, Engine, Request
from engine.gpu.device import why_no_cuda_core
from engine.requirements import why_no_torch_cuda, why_unusable
from export.graphs import MAX_BATCH
from lddgan.errors import LddganError, why_invalid
from lddgan.files import atomic_write
from lddgan.frozen import Frozen
from lddgan.names import Device
from lddgan.progress import Log

TUNING: Final = "fused.json"  # in the store of a bundle


class Tuning(Frozen):
    """The decoder's best chunk, by GPU, libraries, precision and batch."""

    chunks: dict[str, Annotated[int, Field(ge=1, le=MAX_BATCH)]] = Field(default_factory=dict)


class Store:
    """The file in which tuning is kept for the next process; without `path` nothing is kept."""

    def __init__(self, path: Path | None, log: Log) -> None:
        self.path, self.log = path, log

    def chunks(self, machine: str) -> dict[int, int]:
        """The decoder's best chunks by batch, as far as they are known for a machine."""
        before = f"{machine}, batch "
        known = self._read().chunks.items()
        return {int(k.removeprefix(before)): v for k, v in known if k.startswith(before)}

    def save(self, machine: str, batch: int, chunk: int) -> None:
        """Add what was found. Logs the reason if the folder cannot be written."""
        if self.path is None:
            return
        tuning = Tuning(chunks={**self._read().chunks, f"{machine}, batch {batch}": chunk})
        try:
            atomic_write(self.path, tuning.model_dump_json(indent=1).encode())
        except LddganError as error:
            self.log(f"the tuning is not kept: {error}")

    def _read(self) -> Tuning:
        """What earlier processes found. Logs the reason if the file is damaged."""
        if self.path is None:
            return Tuning()
        try:
            return Tuning.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return Tuning()
        except OSError as error:
            self.log(f"{self.path} is left aside: {error.strerror}")
        except ValidationError as error:
            self.log(f"{self.path} is left aside: {why_invalid(error, 'the file')}")
        return Tuning()


def why_not(device: Device) -> str | None:
    """Why PyTorch, Triton or cuda-core cannot be used. Returns None if they can."""
    return why_no_torch_cuda() or why_unusable("triton") or why_no_cuda_core()


def open_fused(request: Request) -> Backend:
    """The fused networks of a model on the GPU. Raises what `open_gpu` does."""
    from engine.backends.fused.gpu import TorchGpu
    from engine.backends.fused.kernels import TRITON
    from engine.backends.fused.run import FusedOnGpu

    store = Store(None if request.store is None else request.store / TUNING, request.log)
    return FusedOnGpu(
        request.model(),
        request.precision,
        TRITON,
        TorchGpu(request.stream),
        cuda_graph=request.cuda_graph,
        store=store,
    )


ENGINE = Engine(
    label="fused",
    color="#b7791f",
    precisions={"cuda": ("fp16", "fp32", "bf16")},
    why_not=why_not,
    open=open_fused,
    packages=("torch", "triton", "cuda-core"),
    needs_graphs=False,
    captures=True,
)
