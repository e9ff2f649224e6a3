"""A linear layer folded into what comes before it: attention's projections, a codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.networks.autoencoder import AttnBlock, Autoencoder, VqAutoencoder
from lddgan.networks.layers import to_image, to_tokens
from lddgan.networks.ncsnpp import Attention
from lddgan.networks.quantiser import nearest_code


@torch.no_grad()
def fold_output_projection(layer: Attention | AttnBlock) -> None:
    """Fold the projection after an attention into that of its values, in place and in float64.

    softmax(QK) V W = softmax(QK) (V W), and a bias passes through: the weights of a row sum to 1.
    """
    if isinstance(layer, Attention):
        value, out = layer.NIN_2, layer.NIN_3
        weight, bias = value.W.double() @ out.W.double(), value.b.double() @ out.W.double()
        set_to(value.W, weight)
        set_to(value.b, bias + out.b)
        layer.add_module("NIN_3", nn.Identity())
        return
    matrix = layer.proj_out.weight.double().flatten(1)  # [C,C]
    weight = matrix @ layer.v.weight.double().flatten(1)
    set_to(layer.v.weight, weight.reshape(layer.v.weight.shape))
    assert layer.v.bias is not None and layer.proj_out.bias is not None
    set_to(layer.v.bias, matrix @ layer.v.bias.double() + layer.proj_out.bias)
    layer.add_module("proj_out", nn.Identity())


def set_to(parameter: Tensor, value: Tensor) -> None:
    parameter.data = value.to(parameter.dtype)


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
