"""PyTorch's convolutions with Triton kernels between them, as an engine."""

from __future__ import annotations

from typing import Final

from engine.backend import Backend, Engine, Request
from engine.gpu.device import why_no_cuda_core
from engine.requirements import why_no_torch_cuda, why_unusable
from engine.tuning import Tuning
from lddgan.names import Device
from lddgan.networks.configs import ConvConfig, FixedConfig, NcsnppConfig
from lddgan.preset import Preset

TUNING: Final = "fused.json"  # in the store of a bundle
TAKES: Final = (NcsnppConfig, ConvConfig, FixedConfig)  # networks, or nothing to compute


def why_not(device: Device) -> str | None:
    """Why PyTorch, Triton or cuda-core cannot be used. Returns None if they can."""
    return why_no_torch_cuda() or why_unusable("triton") or why_no_cuda_core()


def why_not_model(preset: Preset) -> str | None:
    """Which network of a model there are no kernels for. Returns None if there are for both."""
    for part, cfg in (("generators", preset.generator), ("autoencoders", preset.autoencoder)):
        if not isinstance(cfg, TAKES):
            return f"there are no kernels for {part} of kind {cfg.kind}"
    return None


def open_fused(request: Request) -> Backend:
    """The fused networks of a model on the GPU. Raises what `open_gpu` does."""
    from engine.backends.fused.gpu import TorchGpu
    from engine.backends.fused.kernels import TRITON
    from engine.backends.fused.run import FusedOnGpu

    model, gpu = request.model(), TorchGpu(request.stream)
    kept = None if request.store is None else request.store / TUNING
    tuning = Tuning(kept, f"{gpu.where}, {request.precision}", request.log)
    return FusedOnGpu(
        model,
        request.precision,
        TRITON,
        gpu,
        cuda_graph=request.cuda_graph,
        tuning=tuning,
    )


ENGINE = Engine(
    label="fused",
    color="#b7791f",
    precisions={"cuda": ("fp16", "fp32", "bf16")},
    why_not=why_not,
    why_not_model=why_not_model,
    open=open_fused,
    packages=("torch", "triton", "cuda-core"),
    needs_graphs=False,
    captures=True,
)
