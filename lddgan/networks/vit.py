"""U-ViT (Bao et al., arXiv 2209.12152) whose blocks are normalised adaptively from z.

Tokens are patches of the latent and one of the step; block i and block depth-1-i are joined by a
long skip connection.  arXiv 2406.11713, appendix C, puts it in the place of NCSN++.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.networks.configs import MLP_RATIO, UVitConfig
from lddgan.networks.generator import NEARLY_ZERO, Embedding, Generator, mapping_network
from lddgan.networks.layers import conv3x3, linear, sinusoid
from lddgan.preset import Preset

EPS = 1e-5  # layer normalisation
STD = 0.02  # of initial weights


class LayerNorm(nn.LayerNorm):
    """Layer normalisation whose statistics are float32, whatever the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, eps=self.eps).to(x.dtype)


class AdaLN(nn.Module):
    """Layer normalisation whose scale and shift come from z: tokens [B,N,C], zemb [B,Z]."""

    def __init__(self, width: int, z_emb_dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.style = linear(z_emb_dim, 2 * width)
        with torch.no_grad():
            self.style.bias[:width] = 1.0

    def forward(self, tokens: Tensor, zemb: Tensor) -> Tensor:
        gamma, beta = self.style(zemb)[:, None].split([tokens.shape[-1]] * 2, dim=-1)
        return gamma * self.norm(tokens) + beta


class SelfAttention(nn.Module):
    """Attention of all tokens, several heads: [B,N,C] -> [B,N,C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = projection(width, 3 * width, bias=False)
        self.proj = projection(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        parts = self.qkv(tokens).reshape(batch, count, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # [B,heads,N,C/heads]
        h = F.scaled_dot_product_attention(q, k, v)
        return self.proj(h.transpose(1, 2).reshape(batch, count, width))


class Block(nn.Module):
    """A transformer block: [B,N,C] -> [B,N,C]; [B,N,2C] with the skip of an earlier block."""

    def __init__(self, cfg: UVitConfig, *, skip: bool) -> None:
        super().__init__()
        self.skip_linear = projection(2 * cfg.width, cfg.width) if skip else nn.Identity()
        self.norm1 = AdaLN(cfg.width, cfg.z_emb_dim)
        self.attn = SelfAttention(cfg.width, cfg.heads)
        self.norm2 = AdaLN(cfg.width, cfg.z_emb_dim)
        hidden = MLP_RATIO * cfg.width
        self.mlp = nn.Sequential(
            projection(cfg.width, hidden), nn.GELU(), projection(hidden, cfg.width)
        )

    def forward(self, tokens: Tensor, zemb: Tensor) -> Tensor:
        tokens = self.skip_linear(tokens)
        tokens = tokens + self.attn(self.norm1(tokens, zemb))
        return tokens + self.mlp(self.norm2(tokens, zemb))


class UVit(Generator):
    """The generator on patches of `cfg.patch` x `cfg.patch` latent pixels."""

    cfg: UVitConfig

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        cfg = preset.generator
        assert isinstance(cfg, UVitConfig)
        self.cfg = cfg
        channels, side = preset.latent_channels, preset.latent_size // cfg.patch
        self.patch_embed = nn.Conv2d(channels, cfg.width, cfg.patch, stride=cfg.patch)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + side**2, cfg.width))
        nn.init.trunc_normal_(self.pos_embed, std=STD)
        half = cfg.depth // 2
        self.in_blocks = nn.ModuleList(Block(cfg, skip=False) for _ in range(half))
        self.mid_block = Block(cfg, skip=False)
        self.out_blocks = nn.ModuleList(Block(cfg, skip=True) for _ in range(half))
        self.norm = LayerNorm(cfg.width, eps=EPS, elementwise_affine=False)
        self.decoder_pred = projection(cfg.width, cfg.patch**2 * channels)
        self.final_layer = conv3x3(channels, channels, NEARLY_ZERO)
        self.z_transform = mapping_network(cfg)

    def embed_time(self, t: Tensor) -> Tensor:
        """The step's token: int [B] -> [B,C]."""
        return sinusoid(t, self.cfg.width).to(self.dtype)

    def denoise(self, x_t: Tensor, temb: Embedding, zemb: Embedding) -> Tensor:
        patches = self.patch_embed(x_t.to(self.dtype)).flatten(2).transpose(1, 2)  # [B,N,C]
        step = temb[:, None].expand(patches.shape[0], 1, -1)
        tokens = torch.cat([step, patches], dim=1) + self.pos_embed
        skips = []
        for block in self.in_blocks:
            tokens = block(tokens, zemb)
            skips.append(tokens)
        tokens = self.mid_block(tokens, zemb)
        for block in self.out_blocks:
            tokens = block(torch.cat([tokens, skips.pop()], dim=-1), zemb)
        image = unpatched(self.decoder_pred(self.norm(tokens)[:, 1:]), x_t, self.cfg.patch)
        return torch.tanh(self.final_layer(image))


def projection(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer that starts as U-ViT's do."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=STD)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def unpatched(tokens: Tensor, like: Tensor, patch: int) -> Tensor:
    """[B,N,patch*patch*C], each token a square of pixels -> [B,C,h,w], the shape of `like`."""
    batch, channels, height, width = like.shape
    rows, columns = height // patch, width // patch
    squares = tokens.reshape(batch, rows, columns, patch, patch, channels)
    return squares.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)
