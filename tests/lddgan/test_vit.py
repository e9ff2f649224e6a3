"""The U-ViT: its size, and each piece against its definition."""

from __future__ import annotations

import torch
from torch import nn

from lddgan.checkpoint import random_model
from lddgan.networks.configs import UVitConfig
from lddgan.networks.vit import SelfAttention, UVit, unpatched
from lddgan.preset import Preset
from tests.published_files import deviation, tiny_preset

SMALL = UVitConfig(width=24, depth=3, heads=3, nz=10, mapping_layers=1, z_emb_dim=16)


def small_vit() -> Preset:
    return tiny_preset(name="small-vit", generator=SMALL)


def test_attention_is_that_of_torch_with_the_same_weights() -> None:
    torch.manual_seed(0)
    ours, theirs = SelfAttention(24, 3), nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.zero_()
        theirs.out_proj.weight.copy_(ours.proj.weight)
        theirs.out_proj.bias.copy_(ours.proj.bias)
        tokens = torch.randn(2, 5, 24)
        expected, _ = theirs(tokens, tokens, tokens)
        assert deviation(ours(tokens), expected) < 1e-5


def test_patches_come_back_where_they_were() -> None:
    image = torch.randn(2, 3, 4, 6)
    squares = nn.Unfold(2, stride=2)(image)  # [B,C*4,6]: channels, then rows and columns
    tokens = squares.reshape(2, 3, 4, 6).permute(0, 3, 2, 1).flatten(2)  # rows, columns, channels
    assert torch.equal(unpatched(tokens, image, 2), image)


@torch.no_grad()
def test_output_depends_on_step_and_z_and_on_every_block() -> None:
    generator = random_model(small_vit()).generator
    assert isinstance(generator, UVit)
    x, t, z = torch.randn(2, 4, 8, 8), torch.tensor([0, 1]), torch.randn(2, 10)
    x_0 = generator(x, t, z)
    assert x_0.shape == x.shape
    assert not torch.allclose(generator(x, t + 1, z), x_0)
    assert not torch.allclose(generator(x, t, z.flip(0)), x_0)
    for block in (*generator.in_blocks, generator.mid_block, *generator.out_blocks):
        weight = block.mlp[2].weight
        before = weight.clone()
        weight.mul_(1.5)
        assert not torch.allclose(generator(x, t, z), x_0)
        weight.copy_(before)


def test_long_skip_joins_the_first_block_with_the_last() -> None:
    generator = random_model(small_vit()).generator
    given: list[torch.Tensor] = []
    generator.out_blocks[0].skip_linear.register_forward_pre_hook(
        lambda _, inputs: given.append(inputs[0])
    )
    left: list[torch.Tensor] = []
    generator.in_blocks[0].register_forward_hook(lambda _, inputs, made: left.append(made))
    with torch.no_grad():
        generator(torch.randn(1, 4, 8, 8), torch.tensor([1]), torch.randn(1, 10))
    assert torch.equal(given[0][..., SMALL.width :], left[0])
