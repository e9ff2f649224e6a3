"""The projection after a single-head attention, folded into that of its values.

softmax(QK) V W = softmax(QK) (V W), and a bias passes through, as the weights of a row sum to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lddgan.networks.autoencoder import AttnBlock
from lddgan.networks.generator import Attention


@torch.no_grad()
def fold_output_projection(layer: Attention | AttnBlock) -> None:
    """In place; the product is computed in float64."""
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
