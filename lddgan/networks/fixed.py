"""The codecs without parameters: pixels (DDGAN) and Haar coefficients (WDDGAN)."""

from __future__ import annotations

from typing import Final, get_args

import torch
from torch import Tensor

from lddgan.networks.autoencoder import Autoencoder
from lddgan.networks.configs import Band, HaarConfig
from lddgan.networks.haar import Haar, InverseHaar
from lddgan.preset import Preset

BANDS: Final = get_args(Band)  # in the order in which Haar gives them


class Pixels(Autoencoder):
    """The latent is the image: [B,3,H,W]."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()

    def moments(self, image: Tensor) -> Tensor:
        return image

    def decode_regularised(self, latent: Tensor) -> Tensor:
        return latent


class HaarBands(Autoencoder):
    """The latent is the four bands of the image, each of RGB: [B,12,H/2,W/2]."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        assert isinstance(preset.autoencoder, HaarConfig)
        self.order = [BANDS.index(band) for band in preset.autoencoder.bands]
        self.haar, self.inverse = Haar(), InverseHaar()

    def moments(self, image: Tensor) -> Tensor:
        low, high = self.haar(image)
        bands = (low, *torch.split(high, [3] * 3, dim=1))
        return torch.cat([bands[index] for index in self.order], dim=1)

    def decode_regularised(self, latent: Tensor) -> Tensor:
        given = torch.split(latent, [3] * 4, dim=1)
        low, *high = (given[self.order.index(index)] for index in range(4))
        return self.inverse(low, torch.cat(high, dim=1))
