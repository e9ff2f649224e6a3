"""Vector quantisation: the search of a codebook, and what trains it (arXiv 1711.00937)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.networks.layers import to_image, to_tokens

CODES_PER_SLICE = 512  # of the codebook, searched at once


def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code by squared distance, the lowest on ties.

    vectors float32 [B,N,D], codebook float32 [K,D] -> int64 [B,N].  No tensor is larger than
    B*N*CODES_PER_SLICE.
    """
    index, best = _nearest_of(vectors, codebook[:CODES_PER_SLICE])
    for start in range(CODES_PER_SLICE, len(codebook), CODES_PER_SLICE):
        position, distance = _nearest_of(vectors, codebook[start : start + CODES_PER_SLICE])
        index = torch.where(distance < best, position + start, index)
        best = torch.minimum(distance, best)
    return index.squeeze(-1)


def _nearest_of(vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest of one slice of codes and its distance, both [B,N,1]."""
    distance = codes.square().sum(dim=1) - 2 * (vectors @ codes.T)  # but for |v|^2; [B,N,slice]
    index = distance.argmin(dim=-1, keepdim=True)
    return index, distance.gather(-1, index)  # not min: TensorRT 8.6 reduces over every axis


class VectorQuantiser(nn.Module):
    """Replaces each vector of a latent [B,D,h,w] by the nearest code, in float32."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        codebook = torch.empty(codes, channels)  # else Embedding's `normal_` on the meta device
        self.embedding = nn.Embedding(codes, channels, _weight=codebook)  # imports torch._dynamo
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, latent: Tensor) -> Tensor:
        codebook = self.embedding.weight
        index = nearest_code(to_tokens(latent.float()), codebook.float())
        return to_image(F.embedding(index, codebook), latent)


def straight_through(latent: Tensor, quantised: Tensor) -> Tensor:
    """The value of `quantised`, to the last bit, with its gradient going to `latent`: [B,C,h,w]."""
    return quantised.detach() + (latent - latent.detach())


def vq_losses(latent: Tensor, quantised: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(codebook |sg(z_e) - e|^2, commitment beta |z_e - sg(e)|^2), means over all elements.

    latent z_e [B,C,h,w], its codes e [B,C,h,w] (arXiv 1711.00937, equation 3).
    """
    codebook = (latent.detach() - quantised).square().mean()
    return codebook, beta * (latent - quantised.detach()).square().mean()
