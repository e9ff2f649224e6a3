"""PyTorch as an engine: the baseline, and the same networks through torch.compile."""

from __future__ import annotations

from functools import partial

from engine.backend import Backend, Engine, Request
from engine.registry import BASELINE_PRECISION
from engine.requirements import why_no_torch_cuda, why_unusable
from lddgan.names import Device


def why_not(device: Device) -> str | None:
    """Why PyTorch cannot run on `device`. Returns None if it can."""
    return why_no_torch_cuda() if device == "cuda" else why_unusable("torch")


def open_torch(request: Request, *, compiled: bool) -> Backend:
    """The networks of a model on a CPU or the GPU."""
    from engine.backends.torch.run import TorchBackend

    return TorchBackend(request.model(), request.device, request.precision, compiled=compiled)


ENGINE = Engine(
    label="PyTorch",
    color="#8a8a8a",
    precisions={"cpu": (BASELINE_PRECISION,), "cuda": (BASELINE_PRECISION, "fp16")},
    why_not=why_not,
    open=partial(open_torch, compiled=False),
    packages=("torch",),
    default=BASELINE_PRECISION,
    needs_graphs=False,
)
COMPILED = Engine(
    label="torch.compile",
    color="#5a5a5a",
    precisions={"cuda": ("fp16", "fp32")},
    why_not=why_not,
    open=partial(open_torch, compiled=True),
    packages=("torch", "triton"),
    default="fp16",
    needs_graphs=False,
)
