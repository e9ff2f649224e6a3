"""The time-conditional discriminator D(x_t, t, x_{t+1})."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.networks.layers import SQRT_HALF, FirDown, conv1x1, conv3x3, linear, sinusoid
from lddgan.preset import GROUP, Preset

SLOPE = 0.2  # of LeakyReLU


def act(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


class TimeEmbedding(nn.Module):
    """int [B] -> [B,dim]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.main = nn.Sequential(linear(dim, dim), nn.LeakyReLU(SLOPE), linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return act(self.main(sinusoid(t, self.dim)))


class DownBlock(nn.Module):
    """x [B,in,h,w] -> [B,out,h',w'], h' = h/2 if it downsamples."""

    def __init__(self, inputs: int, outputs: int, t_emb_dim: int, downsample: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(conv3x3(inputs, outputs))
        self.conv2 = nn.Sequential(conv3x3(outputs, outputs, 1e-10))  # nearly nothing at first
        self.dense_t1 = linear(t_emb_dim, outputs)
        self.skip = nn.Sequential(conv1x1(inputs, outputs, bias=False))
        self.fir_out = FirDown(outputs) if downsample else nn.Identity()
        self.fir_in = FirDown(inputs) if downsample else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(act(x)) + self.dense_t1(temb)[:, :, None, None]
        h = self.conv2(self.fir_out(act(h)))
        return (h + self.skip(self.fir_in(x))) * SQRT_HALF


def minibatch_deviation(x: Tensor) -> Tensor:
    """Append one channel: the mean deviation within groups of images. [B,C,h,w] -> [B,C+1,h,w].

    B must be a multiple of min(B, 4).  Image i shares a group with i + B/4, i + B/2, ...
    """
    batch, channels, height, width = x.shape
    group = min(batch, GROUP)
    grouped = x.view(group, -1, channels, height, width)
    deviation = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt()
    deviation = deviation.mean(dim=(1, 2, 3)).repeat(group)  # [B]
    return torch.cat([x, deviation[:, None, None, None].expand(-1, 1, height, width)], dim=1)


class Discriminator(nn.Module):
    """Logit that (x_t, x_{t+1}) is a real pair: [B,C,h,w], int [B], [B,C,h,w] -> [B,1]."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        cfg = preset.discriminator
        widths = [cfg.ngf * multiple for multiple in cfg.multiples[: cfg.layers]]
        self.layers = cfg.layers
        self.t_embed = TimeEmbedding(cfg.t_emb_dim)
        self.start_conv = conv1x1(2 * preset.latent_channels, 2 * cfg.ngf)
        inputs = 2 * cfg.ngf
        for number, width in enumerate(widths, start=1):
            halves = cfg.first_halves or number > 1
            self.add_module(f"conv{number}", DownBlock(inputs, width, cfg.t_emb_dim, halves))
            inputs = width
        self.final_conv = conv3x3(inputs + 1, inputs, cfg.last_scale)
        self.end_linear = linear(inputs, 1)

    def forward(self, x_t: Tensor, t: Tensor, x_next: Tensor) -> Tensor:
        temb = self.t_embed(t)
        h = self.start_conv(torch.cat([x_t, x_next], dim=1))
        for number in range(1, self.layers + 1):
            h = self.get_submodule(f"conv{number}")(h, temb)
        h = act(self.final_conv(minibatch_deviation(h)))
        return self.end_linear(h.sum(dim=(2, 3)))
