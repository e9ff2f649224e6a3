"""Running the networks in PyTorch: as published, in half precision, or compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.backend import Backend
from engine.registry import BASELINE_PRECISION
from engine.timing import Timer, torch_timer
from export.fp16 import to_half
from export.modules import DecoderToImage, GeneratorStep
from lddgan.checkpoint import Model
from lddgan.errors import LddganError
from lddgan.names import Device, Precision
from lddgan.torch_settings import channels_last, memory_format, pytorch_memory_named, where


class TorchBackend(Backend):
    """The network as published, on a CPU or CUDA device, all cores.

    fp32 is the baseline: eager, default memory format, PyTorch's settings as they are.  fp16 (on a
    GPU only) is the same modules with `export.fp16.to_half`, channels-last.  `compiled`: through
    `torch.compile`, one compilation for each batch size.  `nhwc`: copies of the modules in fp32,
    channels-last too.
    """

    def __init__(
        self,
        model: Model,
        device: Device,
        precision: Precision = BASELINE_PRECISION,
        *,
        compiled: bool = False,
        nhwc: bool = False,
    ) -> None:
        self.name = "torch-compile" if compiled else "torch"
        self.precision, self.device = precision, device
        self.memory_format = torch.channels_last if nhwc else memory_format(precision)
        ready: Callable[[nn.Module], Callable[..., Tensor]] = (
            compiled_module if compiled else lambda module: module
        )
        modules = graph_modules(model, precision, nhwc)
        if device == "cuda" and precision == "fp32" and not nhwc:
            modules = copy.deepcopy(modules)  # `to` would move the weights of `model`
        with pytorch_memory_named():
            self.generator, self.decoder = (ready(module.to(device)) for module in modules)
        self.where = where(device, precision, nhwc)

    @torch.inference_mode()
    def upload(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        with pytorch_memory_named():
            if tensor.ndim == 4:
                return tensor.to(self.device, memory_format=self.memory_format)
            return tensor.to(self.device)

    @torch.inference_mode()
    def step(self, x: Tensor, t: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        with pytorch_memory_named():
            return self.generator(x, t, z, noise)

    @torch.inference_mode()
    def decode(self, x_0: Tensor) -> Tensor:
        with pytorch_memory_named():
            return self.decoder(x_0)

    def download(self, array: Tensor) -> NDArray[Any]:
        return array.cpu().numpy()

    def timer(self) -> Timer:
        return torch_timer(self.device)

    def close(self) -> None:
        del self.generator, self.decoder
        if self.device == "cuda":
            torch.cuda.empty_cache()


def graph_modules(
    model: Model, precision: Precision, nhwc: bool = False
) -> tuple[nn.Module, nn.Module]:
    """Make the generator's step and the decoder in a precision.

    Plain fp32 shares the weights of `model`; fp16 and channels-last (`nhwc`) copy them.
    """
    if precision == "fp32" and not nhwc:
        return (
            GeneratorStep(model.generator, model.preset),
            DecoderToImage(model.autoencoder, model.preset),
        )
    own = Model(model.preset, *copy.deepcopy((model.generator, model.autoencoder)))
    generator, decoder = graph_modules(own, "fp32")
    if precision == "fp16":
        generator, decoder = to_half(generator), to_half(decoder)
    return channels_last(generator), channels_last(decoder)


def compiled_module(module: nn.Module) -> Callable[..., Tensor]:
    """Compile a module whole with torch.compile.

    Raises LddganError if it does not compile; it never runs eagerly.
    """
    from torch._dynamo.exc import TorchDynamoException

    run = torch.compile(module, fullgraph=True, dynamic=False)

    def call(*inputs: Tensor) -> Tensor:
        try:
            return run(*inputs)
        except TorchDynamoException as error:
            first_line = str(error).strip().partition("\n")[0]
            raise LddganError(
                f"torch.compile failed: {first_line}; --engine torch runs without it"
            ) from error

    return call
