"""Opening the fused engine of a bundle."""

from __future__ import annotations

from engine.fused.backend import FusedOnGpu
from engine.fused.gpu import TorchGpu
from engine.fused.kernels import TRITON
from engine.sampler import Sampler, equal_parts
from export.bundle import CHECKPOINT, Bundle
from export.graphs import Precision
from lddgan.checkpoint import load_checkpoint
from lddgan.progress import Log


def open_fused(
    bundle: Bundle,
    precision: Precision,
    chunk: int | None,
    *,
    batch: int | None,
    cuda_graph: bool,
    stream: object | None,
    log: Log,
) -> Sampler:
    """A sampler, its decoder tuned for `batch` if that is given.

    Only where a GPU, PyTorch and Triton are known to be.  Raises what `open_gpu` and
    `FusedBackend.running` do.
    """
    model = load_checkpoint(bundle.file(CHECKPOINT))
    backend = FusedOnGpu(model, precision, TRITON, TorchGpu(stream), cuda_graph=cuda_graph)
    sampler = Sampler(
        backend, bundle.preset, random_weights=bundle.has_random_weights, chunk=chunk, log=log
    )
    if batch is not None:
        tuned_for = equal_parts(batch, sampler.chunk)[0]
        at_once = backend.tune(tuned_for)
        log(f"the decoder is fastest with {at_once} images at once at batch {tuned_for}")
    return sampler
