"""Opening the fused engine of a model, its decoder tuned or as it was tuned before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from engine.backends.fused.engine import FusedOnGpu
from engine.backends.fused.gpu import TorchGpu
from engine.backends.fused.kernels import TRITON
from engine.sampler import Sampler, equal_parts
from export.graphs import MAX_BATCH
from lddgan.checkpoint import Model
from lddgan.errors import LddganError, why_invalid
from lddgan.files import atomic_write
from lddgan.frozen import Frozen
from lddgan.names import Precision
from lddgan.progress import Log

TUNING: Final = "fused.json"  # in the store of a bundle


class Tuning(Frozen):
    """The decoder's best chunk, by GPU, libraries, precision and batch."""

    chunks: dict[str, Annotated[int, Field(ge=1, le=MAX_BATCH)]] = Field(default_factory=dict)


def open_fused(
    model: Model,
    precision: Precision,
    chunk: int | None,
    *,
    batch: int | None,
    cuda_graph: bool,
    stream: object | None,
    store: Path | None,
    log: Log,
) -> Sampler:
    """A sampler, its decoder tuned for `batch` if that is given.

    What was tuned is kept in the folder `store`, if there is one, for the next process.  To be
    called only where a GPU, PyTorch and Triton are known to be.  Raises what `open_gpu` and
    `FusedBackend.running` do.
    """
    backend = FusedOnGpu(model, precision, TRITON, TorchGpu(stream), cuda_graph=cuda_graph)
    sampler = Sampler(
        backend, model.preset, random_weights=model.has_random_weights, chunk=chunk, log=log
    )
    if batch is not None:
        tune(backend, equal_parts(batch, sampler.chunk)[0], store, log)
    return sampler


def tune(backend: FusedOnGpu, batch: int, store: Path | None, log: Log) -> None:
    """Find the decoder's chunk at `batch`, unless the store knows it."""
    path = None if store is None else store / TUNING
    kept = Tuning() if path is None else read_tuning(path, log)
    key = f"{backend.where}, {backend.precision}, batch {batch}"
    if key in kept.chunks:
        backend.chunks[batch] = kept.chunks[key]
        return
    best = backend.tune(batch)
    log(f"the decoder is fastest with {best} images at once at batch {batch}")
    if path is not None:
        save_tuning(path, Tuning(chunks={**kept.chunks, key: best}), log)


def read_tuning(path: Path, log: Log) -> Tuning:
    """What earlier processes found. A file that is damaged counts as empty, which is logged."""
    try:
        return Tuning.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Tuning()
    except OSError as error:
        log(f"{path} is left aside: {error.strerror}")
    except ValidationError as error:
        log(f"{path} is left aside: {why_invalid(error, 'the file')}")
    return Tuning()


def save_tuning(path: Path, tuning: Tuning, log: Log) -> None:
    """Keep what was found. Where the folder cannot be written it is lost, which is logged."""
    try:
        atomic_write(path, tuning.model_dump_json(indent=1).encode())
    except LddganError as error:
        log(f"the tuning is not kept: {error}")
