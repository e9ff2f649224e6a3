"""An engine in a file of its own, as somebody else would add one."""

from __future__ import annotations

from typing import Any

import torch

from engine.backend import Backend, Engine, Request
from export.modules import DecoderToImage, GeneratorStep


class ToyBackend(Backend):
    """The networks in PyTorch, called directly."""

    name = "toy"
    precision = "fp32"
    device = "cpu"
    where = "a toy"

    def __init__(self, request: Request) -> None:
        model = request.model()
        self.generator = GeneratorStep(model.generator, model.preset)
        self.decoder = DecoderToImage(model.autoencoder, model.preset)
        self.closed = False

    def upload(self, array: Any) -> Any:
        return torch.from_numpy(array)

    @torch.inference_mode()
    def step(self, x: Any, t: Any, z: Any, noise: Any) -> Any:
        return self.generator(x, t, z, noise)

    @torch.inference_mode()
    def decode(self, x_0: Any) -> Any:
        return self.decoder(x_0)

    def download(self, array: Any) -> Any:
        return array.numpy()

    def facts(self) -> dict[str, Any]:
        return {"wheels": 4}

    def close(self) -> None:
        self.closed = True


ENGINE = Engine(
    label="a toy",
    color="#123456",
    precisions={"cpu": ("fp32",)},
    why_not=lambda device: None,
    open=ToyBackend,
    packages=("torch",),
    needs_graphs=False,
)
