"""The baseline: the network as published, in PyTorch, eager, fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.sampler import Backend
from export.modules import DecoderToImage, GeneratorStep
from lddgan.checkpoint import Model


class TorchBackend(Backend):
    """Eager fp32 on a CPU or CUDA device, default memory format, all cores."""

    name = "torch"
    precision = "fp32"

    def __init__(self, model: Model, device: str) -> None:
        self.device = device
        self.generator = GeneratorStep(model.generator, model.preset).to(self.device)
        self.decoder = DecoderToImage(model.autoencoder, model.preset).to(self.device)
        if device == "cuda":
            self.where = torch.cuda.get_device_name()
        else:
            self.where = f"CPU ({torch.get_num_threads()} threads)"

    def upload(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    @torch.inference_mode()
    def step(self, x: Tensor, t: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        return self.generator(x, t, z, noise)

    @torch.inference_mode()
    def decode(self, x_0: Tensor) -> Tensor:
        return self.decoder(x_0)

    def download(self, array: Tensor) -> NDArray[Any]:
        return array.cpu().numpy()
