"""The two graphs as torch modules: what is exported, and what the torch engine runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.graphs import BATCH, TensorSpec
from lddgan.diffusion import posterior
from lddgan.networks.autoencoder import Autoencoder
from lddgan.networks.generator import Generator
from lddgan.preset import Preset


def example(spec: TensorSpec) -> Tensor:
    """Zeros to trace with, for a batch of 2: the exporter takes 1 for a constant."""
    shape = [2 if size == BATCH else int(size) for size in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


class GeneratorStep(nn.Module):
    """One denoising step: the network and the posterior sample, coefficients gathered by t.

    x [B,C,h,w] f32, t [1] i32, z [B,nz] f32, noise [B,C,h,w] f32 -> x_next [B,C,h,w] f32
    """

    coef1: Tensor
    coef2: Tensor
    sigma: Tensor

    def __init__(self, generator: Generator, preset: Preset) -> None:
        super().__init__()
        self.generator = generator
        coefficients = posterior(preset)
        for name in ("coef1", "coef2", "sigma"):
            values = torch.from_numpy(getattr(coefficients, name))
            self.register_buffer(name, values, persistent=False)

    def forward(self, x: Tensor, t: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        x_0 = self.generator(x, t, z).float()
        coef1, coef2, sigma = (
            coefficient.index_select(0, t)  # [1]
            for coefficient in (self.coef1, self.coef2, self.sigma)
        )
        return coef1 * x_0 + coef2 * x + sigma * noise


class DecoderToImage(nn.Module):
    """Scale factor, (VQ lookup,) decoder, clamp, round: x_0 [B,C,h,w] f32 -> [B,H,W,3] uint8."""

    def __init__(self, autoencoder: Autoencoder, preset: Preset) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.scale_factor = preset.scale_factor

    def forward(self, x_0: Tensor) -> Tensor:
        return to_uint8(self.autoencoder.decode(x_0 * self.scale_factor).float())


def to_uint8(image: Tensor) -> Tensor:
    """float32 [B,3,H,W], clamped to [-1,1] -> uint8 [B,H,W,3], rounded half to even."""
    grey = ((image.clamp(-1, 1) + 1) * 127.5).round()
    return grey.permute(0, 2, 3, 1).to(torch.uint8)
