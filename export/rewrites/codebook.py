"""A codebook put through the convolution that follows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.networks.autoencoder import Autoencoder, VqAutoencoder
from lddgan.networks.layers import to_image, to_tokens
from lddgan.networks.quantiser import nearest_code


class Lookup(nn.Module):
    """Nearest code, then what `post_quant_conv` makes of it: float32 [B,D,h,w] -> [B,C,h,w]."""

    codebook: Tensor  # [K,D], which is searched
    table: Tensor  # [K,C]

    def __init__(self, codebook: Tensor, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        with torch.no_grad():
            made = codebook.double() @ conv.weight.double().flatten(1).T + conv.bias.double()
        self.register_buffer("codebook", codebook.detach(), persistent=False)
        self.register_buffer("table", made.to(codebook.dtype), persistent=False)

    def forward(self, latent: Tensor) -> Tensor:
        index = nearest_code(to_tokens(latent.float()), self.codebook)
        return to_image(F.embedding(index, self.table), latent)


def fold_post_quant_conv(autoencoder: Autoencoder) -> None:
    """Put a codebook through the convolution after it, in place. Others are left as they are."""
    if isinstance(autoencoder, VqAutoencoder):
        codebook = autoencoder.quantize.embedding.weight
        autoencoder.add_module("quantize", Lookup(codebook, autoencoder.post_quant_conv))
        autoencoder.add_module("post_quant_conv", nn.Identity())
