"""The autoencoders: of VQGAN / latent diffusion, with KL, VQ or no regularisation of latents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.networks.configs import ConvConfig, VqConfig
from lddgan.networks.layers import GroupNorm, attention, to_image, to_tokens
from lddgan.networks.quantiser import VectorQuantiser, nearest_code, straight_through, vq_losses
from lddgan.preset import AutoencoderTraining, Preset


def norm(config: ConvConfig, channels: int) -> GroupNorm:
    return GroupNorm(config.groups, channels, eps=1e-6)


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class ResnetBlock(nn.Module):
    """x [B,in,h,w] -> [B,out,h,w]"""

    def __init__(self, config: ConvConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = norm(config, inputs)
        self.conv1 = conv(inputs, outputs)
        self.norm2 = norm(config, outputs)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = conv(outputs, outputs)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Self-attention with one head: [B,C,h,w] -> [B,C,h,w]."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        super().__init__()
        self.norm = norm(config, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = attention(to_tokens(self.q(h)), to_tokens(self.k(h)), to_tokens(self.v(h)))
        return x + self.proj_out(to_image(h, x))


class Downsample(nn.Module):
    """Pad right and bottom by one, 3x3 convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour x2, 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, each with its attention; a resampling may follow."""

    def __init__(
        self,
        config: ConvConfig,
        size: int,
        widths: Sequence[int],
        resample: Downsample | Upsample | None,
    ) -> None:
        super().__init__()
        attends = size in config.attention
        self.block = nn.ModuleList(ResnetBlock(config, i, o) for i, o in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(config, width) for width in widths[1:] if attends)
        self.downsample = resample if isinstance(resample, Downsample) else None
        self.upsample = resample if isinstance(resample, Upsample) else None

    def forward(self, h: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            h = block(h)
            if len(self.attn) > 0:
                h = self.attn[index](h)
        for resample in (self.downsample, self.upsample):
            h = h if resample is None else resample(h)
        return h


class Middle(nn.Module):
    def __init__(self, config: ConvConfig, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(config, channels, channels)
        self.attn_1 = AttnBlock(config, channels)
        self.block_2 = ResnetBlock(config, channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class Encoder(nn.Module):
    """Image [B,3,H,W] -> [B,outputs,H/f,W/f]."""

    def __init__(self, config: ConvConfig, image_size: int, outputs: int) -> None:
        super().__init__()
        self.conv_in = conv(3, config.ch)
        self.down = nn.ModuleList()
        h = config.ch
        for level, width in enumerate(config.widths):
            down = Downsample(width) if level + 1 < len(config.widths) else None
            widths = [h] + [width] * config.blocks
            self.down.append(Level(config, image_size >> level, widths, down))
            h = width
        self.mid = Middle(config, h)
        self.norm_out = norm(config, h)
        self.conv_out = conv(h, outputs)

    def forward(self, image: Tensor) -> Tensor:
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent [B,C,h,w] -> image [B,3,f*h,f*w]."""

    def __init__(self, config: ConvConfig, image_size: int, inputs: int) -> None:
        super().__init__()
        h = config.widths[-1]
        self.tanh = config.tanh
        self.conv_in = conv(inputs, h)
        self.mid = Middle(config, h)
        levels = []
        for level, width in reversed(list(enumerate(config.widths))):
            up = Upsample(width) if level != 0 else None
            widths = [h] + [width] * (config.blocks + 1)
            levels.append(Level(config, image_size >> level, widths, up))
            h = width
        self.up = nn.ModuleList(reversed(levels))  # up.L belongs to level L; used from the highest
        self.norm_out = norm(config, h)
        self.conv_out = conv(h, 3)

    def forward(self, latent: Tensor) -> Tensor:
        h = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            h = level(h)
        image = self.conv_out(F.silu(self.norm_out(h)))
        return torch.tanh(image) if self.tanh else image


# ---- what latents are drawn from, and their regularisation ----


def draw_latent(moments: Tensor, noise: Tensor) -> Tensor:
    """What `Autoencoder.moments` gave and N(0,1) noise [B,C,h,w] -> a latent [B,C,h,w]."""
    if moments.shape[1] == noise.shape[1]:
        return moments
    mean, logvar = moments.chunk(2, dim=1)
    return mean + (0.5 * logvar).exp() * noise


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp logvar) || N(0, 1)) of an image in nats, mean over the batch -> scalar."""
    per_element = mean.square() + logvar.exp() - 1 - logvar
    return 0.5 * per_element.sum(dim=(1, 2, 3)).mean()


# ---- the kinds ----


class Autoencoder(nn.Module):
    """What every kind of autoencoder answers; latents here are not divided by the scale factor."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize: VectorQuantiser | None = None

    @property
    def decoding(self) -> tuple[nn.Module, ...]:
        """The modules that turn a latent into an image, but for `quantize`."""
        return ()

    @property
    def last_weight(self) -> Tensor:
        """The weight of the decoder's last layer, where the adversarial loss is balanced."""
        raise NotImplementedError

    def moments(self, image: Tensor) -> Tensor:
        """Image [B,3,H,W] in [-1,1] -> mean and log-variance [B,2C,h,w], or the latent itself."""
        raise NotImplementedError

    def encode(self, image: Tensor) -> Tensor:
        """Image [B,3,H,W] in [-1,1] -> latent [B,C,h,w]: the mean, or VQ before quantisation."""
        return self.moments(image)

    def regularise(
        self, moments: Tensor, noise: Tensor, cfg: AutoencoderTraining
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(latent [B,C,h,w] for `decode_regularised`, weighted losses), for noise [B,C,h,w]."""
        return moments, {}

    def decode(self, latent: Tensor) -> Tensor:
        """Latent [B,C,h,w] -> image [B,3,H,W], not clamped."""
        return self.decode_regularised(latent)

    def decode_regularised(self, latent: Tensor) -> Tensor:
        """Latent [B,C,h,w], quantised if this kind quantises -> image [B,3,H,W], not clamped."""
        raise NotImplementedError

    def codes(self, latent: Tensor) -> Tensor | None:
        """Index of the code at every position, int64 [B,h*w]; None without a codebook."""
        return None


class ConvAutoencoder(Autoencoder):
    """Encoder, bottleneck and decoder of latent diffusion."""

    def __init__(self, preset: Preset, moments: int, codes: int = 0) -> None:
        super().__init__()
        config, channels = preset.autoencoder, preset.latent_channels
        assert isinstance(config, ConvConfig)
        self.encoder = Encoder(config, preset.image_size, moments)
        self.decoder = Decoder(config, preset.image_size, channels)
        if codes:
            self.quantize = VectorQuantiser(codes, channels)
        self.quant_conv = nn.Conv2d(moments, moments, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    @property
    def decoding(self) -> tuple[nn.Module, ...]:
        return self.post_quant_conv, self.decoder

    @property
    def last_weight(self) -> Tensor:
        return self.decoder.conv_out.weight

    def moments(self, image: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(image))

    def decode_regularised(self, latent: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latent.to(self.decoder.conv_in.weight.dtype)))


class KlAutoencoder(ConvAutoencoder):
    """Draws latents from N(mean, variance); the mean encodes."""

    def __init__(self, preset: Preset) -> None:
        super().__init__(preset, 2 * preset.latent_channels)
        self.values = 3 * preset.image_size**2  # of an image

    def moments(self, image: Tensor) -> Tensor:
        mean, logvar = super().moments(image).chunk(2, dim=1)
        return torch.cat([mean, logvar.clamp(-30.0, 20.0)], dim=1)

    def encode(self, image: Tensor) -> Tensor:
        return self.moments(image).chunk(2, dim=1)[0]

    def regularise(
        self, moments: Tensor, noise: Tensor, cfg: AutoencoderTraining
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # Divided by the values of an image, `kl_weight` means what it does in latent diffusion,
        # where KL and L1 are summed over an image.
        mean, logvar = moments.chunk(2, dim=1)
        kl = cfg.kl_weight * kl_divergence(mean, logvar) / self.values
        # Of the same two tensors: gradients are then summed in the order of earlier versions.
        return draw_latent(torch.cat([mean, logvar], dim=1), noise), {"kl": kl}


class FreeAutoencoder(ConvAutoencoder):
    """The KL network, whose mean is the latent."""

    def __init__(self, preset: Preset) -> None:
        super().__init__(preset, 2 * preset.latent_channels)

    def moments(self, image: Tensor) -> Tensor:
        return super().moments(image).chunk(2, dim=1)[0]


class VqAutoencoder(ConvAutoencoder):
    """Replaces latents by the nearest codes when they are decoded."""

    quantize: VectorQuantiser

    def __init__(self, preset: Preset) -> None:
        assert isinstance(preset.autoencoder, VqConfig)
        super().__init__(preset, preset.latent_channels, preset.autoencoder.codes)

    def regularise(
        self, moments: Tensor, noise: Tensor, cfg: AutoencoderTraining
    ) -> tuple[Tensor, dict[str, Tensor]]:
        quantised = self.quantize(moments)
        codebook, commitment = vq_losses(moments, quantised, cfg.commitment)
        latent = straight_through(moments, quantised)
        return latent, {"codebook": codebook, "commitment": commitment}

    def decode(self, latent: Tensor) -> Tensor:
        return self.decode_regularised(self.quantize(latent))

    def codes(self, latent: Tensor) -> Tensor:
        # Where `latent` is, so that every engine's latents are judged alike.
        codebook = self.quantize.embedding.weight.to(latent.device)
        return nearest_code(to_tokens(latent.float()), codebook.float())
