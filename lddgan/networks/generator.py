"""What every kind of generator is: G(x_t, t, z) -> x_0, with a mapping network for z."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lddgan.networks.configs import GeneratorConfig
from lddgan.networks.layers import linear

Embedding = Any  # Tensor [B,...]; export/rewrites passes what its own layers read
NEARLY_ZERO = 1e-10  # initial scale of layers that start as (almost) nothing


class Generator(nn.Module, ABC):
    """G(x_t, t, z) -> x_0: [B,C,h,w], int [B], [B,nz] -> [B,C,h,w] in [-1, 1]."""

    cfg: GeneratorConfig
    z_transform: nn.Sequential

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return self.denoise(x_t, self.embed_time(t), self.embed_latent(z))

    @abstractmethod
    def embed_time(self, t: Tensor) -> Tensor:
        """The step as the layers take it: int [B] -> [B,...]."""

    def embed_latent(self, z: Tensor) -> Tensor:
        """The latent as the layers take it: [B,nz] -> [B,z_emb_dim]."""
        # Not mean: TensorRT 8.6 takes the mean of opset 18 over the batch too.
        power = z.square().sum(dim=1, keepdim=True) / self.cfg.nz  # [B,1]
        z = z / torch.sqrt(power + 1e-8)
        embedded: Tensor = self.z_transform(z.to(self.dtype))
        return embedded

    @abstractmethod
    def denoise(self, x_t: Tensor, temb: Embedding, zemb: Embedding) -> Tensor:
        """x_t [B,C,h,w] and what `embed_time` and `embed_latent` give -> x_0 [B,C,h,w]."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.parameters()).dtype


def mapping_network(cfg: GeneratorConfig) -> nn.Sequential:
    """The network from a normalised z to its embedding: [B,nz] -> [B,z_emb_dim]."""
    layers: list[nn.Module] = [nn.Identity()]  # index 0 in checkpoints: the normalisation of z
    for width in [cfg.nz] + [cfg.z_emb_dim] * cfg.mapping_layers:
        layers += [linear(width, cfg.z_emb_dim), nn.SiLU()]
    return nn.Sequential(*layers)
