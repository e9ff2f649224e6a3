"""The networks of lddgan/networks with the kernels between their convolutions.

PyTorch adds a convolution's bias in a pass of its own.  Here convolutions have none: it is added by
the kernel that reads the result next, the normalisation (`before`) or the sum of a block.  The
order of layers, skips and levels stays that of lddgan/networks, whose blocks are replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.backends.fused.reference import Ops
from export.modules import DecoderToImage, GeneratorStep, to_uint8
from export.rewrites.generator import StepTable, StyledNorm, styles_together
from export.rewrites.upsampling import as_transposed
from lddgan.networks.autoencoder import (
    AttnBlock,
    Autoencoder,
    ConvAutoencoder,
    Decoder,
    ResnetBlock,
)
from lddgan.networks.generator import Generator
from lddgan.networks.haar import Haar, InverseHaar
from lddgan.networks.layers import (
    SQRT_HALF,
    FirDown,
    FirUp,
    GroupNorm,
    to_tokens,
)
from lddgan.networks.ncsnpp import Attention, Ncsnpp, PyramidDown, ResidualBlock
from lddgan.networks.wavelet import HaarDown, HaarUp
from lddgan.preset import Preset
from lddgan.torch_settings import channels_last


class FusedNorm(nn.Module):
    """GroupNorm with its scale and shift, and SiLU if asked for: [B,C,h,w]."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, norm: GroupNorm, ops: Ops, *, silu: bool) -> None:
        super().__init__()
        self.norm, self.silu = ops.group_norm, silu
        self.groups, self.eps = norm.num_groups, norm.eps
        for name in ("weight", "bias"):
            values = getattr(norm, name)
            self.register_buffer(name, None if values is None else values.detach()[None])

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        return self.styled(x, self.weight, self.bias, before)

    def styled(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, before: Tensor | None
    ) -> Tensor:
        return self.norm(
            x, self.groups, self.eps, weight=weight, bias=bias, before=before, silu=self.silu
        )


class FusedAdaGN(nn.Module):
    """AdaGN and SiLU, the style computed before: x [B,C,h,w], styles a sequence of [B,C,1,1]."""

    def __init__(self, styled: nn.Module, ops: Ops) -> None:
        super().__init__()
        assert isinstance(styled, StyledNorm) and isinstance(styled.norm, GroupNorm)
        self.norm, self.index = FusedNorm(styled.norm, ops, silu=True), styled.index

    def forward(self, x: Tensor, styles: Sequence[Tensor], before: Tensor | None = None) -> Tensor:
        gamma, beta = styles[2 * self.index : 2 * self.index + 2]
        return self.norm.styled(x, gamma.flatten(1), beta.flatten(1), before)


class Function(nn.Module):
    """A layer without parameters."""

    def __init__(self, function: Callable[..., Any], *settings: int) -> None:
        super().__init__()
        self.function, self.settings = function, settings

    def forward(self, *given: Tensor) -> Any:
        return self.function(*given, *self.settings)


class FusedAttention(nn.Module):
    """(x + attention(norm(x))) * scale, with one head: [B,C,h,w]."""

    bias: Tensor

    def __init__(self, layer: Attention | AttnBlock, ops: Ops) -> None:
        super().__init__()
        if isinstance(layer, Attention):
            norm, self.scale = layer.GroupNorm_0, SQRT_HALF
            nins = (layer.NIN_0, layer.NIN_1, layer.NIN_2, layer.NIN_3)
            weights: list[Tensor] = [nin.W.T for nin in nins]
            biases: list[Tensor] = [nin.b for nin in nins]
        else:
            norm, self.scale = layer.norm, 1.0
            convs = (layer.q, layer.k, layer.v, layer.proj_out)
            weights = [conv.weight.flatten(1) for conv in convs]
            biases = [present(conv.bias) for conv in convs]
        root = norm.num_channels**-0.5  # of the scores
        self.norm, self.add_ = FusedNorm(norm, ops, silu=False), ops.add_
        self.qkv = linear(
            torch.cat([weights[0] * root, *weights[1:3]]),
            torch.cat([biases[0] * root, *biases[1:3]]),
        )
        self.out = linear(weights[3], None)
        self.register_buffer("bias", biases[3].detach())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(to_tokens(self.norm(x))).chunk(3, dim=-1)  # [B,N,C] each
        scores = (q @ k.transpose(1, 2)).softmax(dim=-1)  # [B,N,N]; PyTorch's sums are float32
        return self.add_(as_image(self.out(scores @ v), x), x, self.bias, self.scale)


class FusedResidualBlock(nn.Module):
    """The generator's ResidualBlock, of which `temb` holds the bias of Conv_0 too."""

    bias: Tensor

    def __init__(self, block: ResidualBlock, ops: Ops) -> None:
        super().__init__()
        self.norm_0 = FusedAdaGN(block.GroupNorm_0, ops)
        self.norm_1 = FusedAdaGN(block.GroupNorm_1, ops)
        self.Dense_0, self.add_ = block.Dense_0, ops.add_
        self.conv_0, self.conv_1 = block.Conv_0, block.Conv_1
        bias = bias_of(self.conv_1)
        self.resample = fused_layer(block.resample, ops)
        self.skip: nn.Module = nn.Identity()
        if isinstance(block.Conv_2, nn.Conv2d):
            bias = bias + bias_of(block.Conv_2)
            # It commutes with the filter: the convolution is done where the image is smaller.
            first_conv = isinstance(block.resample, FirUp)
            order = (block.Conv_2, self.resample) if first_conv else (self.resample, block.Conv_2)
            self.skip = nn.Sequential(*order)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, temb: Sequence[Tensor], zemb: Sequence[Tensor]) -> Tensor:
        h = self.conv_0(self.resample(self.norm_0(x, zemb)))
        return self.join(h, self.skip(x), temb, zemb)

    def join(self, h: Tensor, x: Tensor, temb: Sequence[Tensor], zemb: Sequence[Tensor]) -> Tensor:
        """ResidualBlock.join, its biases added."""
        h = self.conv_1(self.norm_1(h, zemb, self.Dense_0(temb)))
        return self.add_(h, x, self.bias, SQRT_HALF)


class FusedHaarDown(FusedResidualBlock):
    """HaarDown: [B,C,h,w] -> ([B,C,h/2,w/2], half of the high bands [B,3C,h/2,w/2]).

    Half of the low band is the mean: it passes on a bias as it is, and commutes with the skip's
    convolution.
    """

    def __init__(self, block: HaarDown, ops: Ops) -> None:
        super().__init__(block, ops)
        self.haar = ops.haar
        self.conv_0.weight.data /= 2

    def forward(  # type: ignore[override]
        self, x: Tensor, temb: Sequence[Tensor], zemb: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        low, high = self.haar(self.conv_0(self.norm_0(x, zemb)))
        return self.join(low, self.skip(F.avg_pool2d(x, 2)), temb, zemb), high


class FusedHaarUp(FusedResidualBlock):
    """HaarUp: x [B,C,h,w] and half of the high bands [B,3A,h,w] -> [B,C,2h,2w]."""

    def __init__(self, block: HaarUp, ops: Ops) -> None:
        super().__init__(block, ops)
        self.inverse, self.convH_0 = ops.inverse_haar, block.convH_0
        for layer in (block.Conv_0, block.Conv_2, block.convH_0):
            for parameter in layer.parameters():
                parameter.data *= 2  # half of the high bands is given, half of the low ones made

    def forward(  # type: ignore[override]
        self, x: Tensor, high: Tensor, temb: Sequence[Tensor], zemb: Sequence[Tensor]
    ) -> Tensor:
        high = self.convH_0(high)
        h = self.inverse(self.conv_0(self.norm_0(x, zemb)), high)
        return self.join(h, self.inverse(self.skip(x), high), temb, zemb)


class FusedResnetBlock(nn.Module):
    """The decoder's ResnetBlock of x + before, where `before` is a bias that x still lacks."""

    before: Tensor | None
    between: Tensor
    bias: Tensor

    def __init__(self, block: ResnetBlock, before: Tensor | None, ops: Ops) -> None:
        super().__init__()
        self.norm1 = FusedNorm(block.norm1, ops, silu=True)
        self.norm2 = FusedNorm(block.norm2, ops, silu=True)
        self.conv1, self.conv2, self.add_ = block.conv1, block.conv2, ops.add_
        self.register_buffer("before", None if before is None else before[None])
        self.register_buffer("between", bias_of(self.conv1)[None])
        bias, skipped = bias_of(self.conv2), before
        self.skip: nn.Module = nn.Identity()
        if block.nin_shortcut is not None:
            self.skip = block.nin_shortcut
            bias = bias + bias_of(block.nin_shortcut)
            if before is not None:
                skipped = block.nin_shortcut.weight.detach().flatten(1) @ before
        self.register_buffer("bias", bias if skipped is None else bias + skipped)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x, self.before))
        h = self.conv2(self.norm2(h, self.between))
        return self.add_(h, self.skip(x), self.bias, 1.0)


class FusedDecoder(nn.Module):
    """Decoder: latent [B,C,h,w] -> image [B,3,f*h,f*w]."""

    def __init__(self, decoder: Decoder, ops: Ops) -> None:
        super().__init__()
        before = None
        level: Any
        for level in reversed(decoder.up):
            for index, block in enumerate(level.block):
                level.block[index] = FusedResnetBlock(block, before, ops)
                before = None
            for index, attention in enumerate(level.attn):
                level.attn[index] = FusedAttention(attention, ops)
            if level.upsample is not None:
                level.upsample = as_transposed(level.upsample)
                before = bias_of(level.upsample)
        middle: Any = decoder.mid
        middle.block_1 = FusedResnetBlock(middle.block_1, None, ops)
        middle.attn_1 = FusedAttention(middle.attn_1, ops)
        middle.block_2 = FusedResnetBlock(middle.block_2, None, ops)
        self.conv_in, self.mid, self.up = decoder.conv_in, middle, decoder.up
        self.norm_out = FusedNorm(decoder.norm_out, ops, silu=True)
        self.conv_out, self.tanh = decoder.conv_out, decoder.tanh

    def forward(self, latent: Tensor) -> Tensor:
        h = self.mid(self.conv_in(latent.to(self.conv_in.weight.dtype)))
        for level in reversed(self.up):
            h = level(h)
        image = self.conv_out(self.norm_out(h))
        return torch.tanh(image) if self.tanh else image


class Lookup(nn.Module):
    """VectorQuantiser and post_quant_conv: float32 [B,D,h,w] -> [B,C,h,w], by a table."""

    codebook: Tensor
    table: Tensor  # [K,C], what post_quant_conv makes of each code

    def __init__(self, codebook: Tensor, conv: nn.Conv2d, ops: Ops) -> None:
        super().__init__()
        self.search = ops.nearest_code
        self.register_buffer("codebook", codebook.detach())
        self.register_buffer("table", codebook @ conv.weight.flatten(1).T + present(conv.bias))

    def forward(self, latent: Tensor) -> Tensor:
        made = F.embedding(self.search(to_tokens(latent), self.codebook), self.table)
        return as_image(made, latent)


class FusedStep(nn.Module):
    """GeneratorStep: x [B,C,h,w], t [1], z [B,nz], noise [B,C,h,w] -> x_next [B,C,h,w], float32."""

    def __init__(self, generator: Generator, preset: Preset, ops: Ops) -> None:
        super().__init__()
        assert isinstance(generator, Ncsnpp)
        generator = copy.deepcopy(generator)
        for block in generator.modules():
            if isinstance(block, ResidualBlock):
                block.Dense_0.bias.data += bias_of(block.Conv_0)
        self.step = GeneratorStep(generator, preset)
        self.step.add_module("generator", StepTable(generator, preset.steps))
        styles_together(generator)
        for index, layer in enumerate(generator.all_modules):
            generator.all_modules[index] = fused_layer(layer, ops)
        for name, layer in generator.named_children():  # Haar and InverseHaar, where it has them
            setattr(generator, name, fused_layer(layer, ops))

    def forward(self, x: Tensor, t: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        return self.step(pixels_first(x), t, z, pixels_first(noise))


class FusedImage(nn.Module):
    """DecoderToImage: x_0 float32 [B,C,h,w] -> uint8 [B,H,W,3]."""

    def __init__(self, autoencoder: Autoencoder, preset: Preset, ops: Ops) -> None:
        super().__init__()
        assert isinstance(autoencoder, ConvAutoencoder)
        autoencoder = copy.deepcopy(autoencoder)
        self.scale_factor = preset.scale_factor
        self.decoder = FusedDecoder(autoencoder.decoder, ops)
        self.to_decoder: nn.Module = autoencoder.post_quant_conv
        if autoencoder.quantize is not None:
            codebook = autoencoder.quantize.embedding.weight
            self.to_decoder = Lookup(codebook, autoencoder.post_quant_conv, ops)

    def forward(self, x_0: Tensor) -> Tensor:
        latent = pixels_first(x_0) * self.scale_factor
        if isinstance(self.to_decoder, nn.Conv2d):
            latent = latent.to(self.to_decoder.weight.dtype)
        return to_uint8(self.decoder(self.to_decoder(latent)).float())


class FixedImage(DecoderToImage):
    """DecoderToImage of a codec without parameters, in plain PyTorch."""

    def forward(self, x_0: Tensor) -> Tensor:
        return super().forward(pixels_first(x_0)).contiguous()


def fused_layer(layer: nn.Module, ops: Ops) -> nn.Module:
    """Return what replaces one layer of the generator's U-Net."""
    for kind, fused in REPLACED.items():
        if isinstance(layer, kind):
            return fused(layer, ops)
    if isinstance(layer, GroupNorm):
        return FusedNorm(layer, ops, silu=False)  # SiLU is the U-Net's
    if isinstance(layer, PyramidDown):
        layer.add_module("fir", fused_layer(layer.fir, ops))
    return layer


REPLACED: Final[dict[type[nn.Module], Callable[[Any, Ops], nn.Module]]] = {  # the first that fits
    HaarDown: FusedHaarDown,
    HaarUp: FusedHaarUp,
    ResidualBlock: FusedResidualBlock,
    Attention: FusedAttention,
    FirUp: lambda layer, ops: Function(ops.fir_up),
    FirDown: lambda layer, ops: Function(ops.fir_down, layer.stride, layer.padding),
    Haar: lambda layer, ops: Function(ops.haar),
    InverseHaar: lambda layer, ops: Function(ops.inverse_haar),
}


def in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert, in place, the convolutions and matrix products, channels-last.

    float32 stay: scales, shifts and biases that the kernels add, the table of the steps, the search
    of codes and what it finds, and the posterior.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.to(dtype)
    return channels_last(module)


def pixels_first(x: Tensor) -> Tensor:
    """Lay the image out channels-last."""
    return x.contiguous(memory_format=torch.channels_last)


def as_image(tokens: Tensor, like: Tensor) -> Tensor:
    """[B,h*w,C] -> [B,C,h,w], the height and width of `like`, channels-last also if B is 1.

    PyTorch goes by strides where it concatenates, and those of `to_image` are then ambiguous.
    """
    batch, _, channels = tokens.shape
    return tokens.reshape(batch, *like.shape[2:], channels).permute(0, 3, 1, 2)


def bias_of(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """Remove the bias [C] from a layer and return it."""
    bias = present(layer.bias).detach()
    layer.bias = None
    return bias


def present(bias: Tensor | None) -> Tensor:
    assert bias is not None
    return bias


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make a layer of these weights [out,in]."""
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    made.weight = nn.Parameter(weight.detach().contiguous(), False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), False)
    return made
