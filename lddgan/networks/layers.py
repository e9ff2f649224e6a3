"""Layers that the generator, the autoencoder and the discriminator share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

SQRT_HALF = math.sqrt(0.5)
TAPS = np.array([1, 3, 3, 1], np.float32)
LOW_PASS = np.outer(TAPS, TAPS) / TAPS.sum() ** 2  # [4,4]; torch would import its compiler


class GroupNorm(nn.GroupNorm):
    """Group normalisation whose statistics are float32, whatever the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head over all positions, softmax in float32: q, k, v [B,N,C] -> [B,N,C]."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)  # [B,N,N]
    return scores.float().softmax(dim=-1).to(v.dtype) @ v


def to_tokens(x: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,h*w,C]"""
    return x.flatten(2).transpose(1, 2)


def to_image(tokens: Tensor, like: Tensor) -> Tensor:
    """[B,h*w,C] -> [B,C,h,w], the shape of `like`."""
    return tokens.transpose(1, 2).reshape(like.shape)


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Embedding of the integer step: int [B] -> float32 [B,width], sines then cosines."""
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(index * (-math.log(10000.0) / (half - 1)))
    angles = t.float()[:, None] * frequencies[None]  # [B,width/2]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Fir(nn.Module):
    """A low-pass filter of every channel, computed in the dtype of its kernel."""

    kernel: Tensor
    gain = 1
    operation: Callable[..., Tensor]

    def __init__(self, channels: int, padding: int = 1, stride: int = 2) -> None:
        super().__init__()
        self.channels, self.padding, self.stride = channels, padding, stride
        self.register_buffer("kernel", torch.empty(0), persistent=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Fill the constant. A network made on the meta device needs it again."""
        kernel = torch.tensor(self.gain * LOW_PASS)
        self.kernel = kernel.repeat(self.channels, 1, 1, 1)  # [C,1,4,4]

    def forward(self, x: Tensor) -> Tensor:
        same, settings = x.to(self.kernel.dtype), (None, self.stride, self.padding)
        return self.operation(same, self.kernel, *settings, groups=self.channels).to(x.dtype)


class FirDown(Fir):
    """Low-pass, then keep every second sample: [B,C,h,w] -> [B,C,h/2,w/2]."""

    operation = staticmethod(F.conv2d)


class FirUp(Fir):
    """Insert zeros, then low-pass with gain 4: [B,C,h,w] -> [B,C,2h,2w]."""

    gain = 4
    operation = staticmethod(F.conv_transpose2d)


def uniform_fan_avg_(weight: Tensor, scale: float = 1.0) -> None:
    """Fill [out,in,...] uniformly, with variance scale / mean(fan in, fan out) (NCSN++)."""
    fan_avg = (weight.shape[0] + weight.shape[1]) / 2 * math.prod(weight.shape[2:])
    bound = math.sqrt(3 * scale / fan_avg)
    nn.init.uniform_(weight, -bound, bound)


def conv3x3(inputs: int, outputs: int, scale: float = 1.0, groups: int = 1) -> nn.Conv2d:
    return _initialised(nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups), scale)


def conv1x1(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    return _initialised(nn.Conv2d(inputs, outputs, 1, bias=bias), 1.0)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return _initialised(nn.Linear(inputs, outputs), 1.0)


def _initialised(layer: Layer, scale: float) -> Layer:
    uniform_fan_avg_(layer.weight.data, scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
