"""What the tests of stored latents share: pictures, and moments computed another way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lddgan.checkpoint import TrainedAutoencoder
from lddgan.data.decode import fit
from lddgan.data.images import ImageFiles, InMemory, Read
from lddgan.data.open_source import open_source
from lddgan.preset import with_values
from lddgan.training.encode import encode_images
from lddgan.training.latents import StoredLatents
from tests.conftest import TINY, TINY_VQ

TINY_NONE = with_values(TINY, {"autoencoder.kind": "none"})
PRESETS = {"kl": TINY, "none": TINY_NONE, "vq": TINY_VQ}
COUNT = 11
PICTURES = np.random.default_rng(5).integers(0, 256, (COUNT, 40, 36, 3), np.uint8)


def image_files(at: Path, bad: Sequence[int] = ()) -> ImageFiles:
    """The pictures as files, some of them empty."""
    at.mkdir()
    for index, pixels in enumerate(PICTURES):
        Image.fromarray(pixels).save(at / f"{index:02d}.png")
    for index in bad:
        (at / f"{index:02d}.png").write_bytes(b"")
    return ImageFiles(open_source(at), TINY.image_size)


FITTED = np.stack([fit(pixels, 32) for pixels in PICTURES])  # [N,H,W,3]


def floats(pixels: np.ndarray) -> Tensor:
    """[N,H,W,3] -> [N,3,H,W] in [-1,1]"""
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1))


@torch.no_grad()
def reference(trained: TrainedAutoencoder, pixels: np.ndarray) -> np.ndarray:
    """Moments [N,M,h,w] layer by layer, one image at a time."""
    network, preset = trained.autoencoder, trained.preset
    out = torch.cat([network.quant_conv(network.encoder(image[None])) for image in floats(pixels)])
    mean, logvar = out[:, : preset.latent_channels], out[:, preset.latent_channels :]
    parts = [mean, logvar.clamp(-30, 20)] if preset.autoencoder.kind == "kl" else [mean]
    return torch.cat(parts, dim=1).numpy()


def mirrored(pixels: np.ndarray) -> np.ndarray:
    return np.stack([np.fliplr(image) for image in pixels])


def encode(folder: Path, trained: TrainedAutoencoder, images, **changes) -> int:
    settings = {
        "flip": False,
        "device": "cpu",
        "batch": 4,
        "workers": 0,
        "on_bad": "stop",
        "log": lambda line: None,
        "source": "somewhere",
    }
    return encode_images(folder, trained, images, **(settings | changes))


def everything(stored: StoredLatents, side: bool = False) -> np.ndarray:
    return stored.read(range(len(stored)), [side] * len(stored)).values.numpy()


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Within what another batch size changes."""
    return found.shape == expected.shape and np.allclose(found, expected, rtol=1e-4, atol=1e-4)


class Pictures(InMemory):
    """The pictures; something may happen when one is read."""

    def __init__(self) -> None:
        super().__init__(floats(FITTED))

    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
        if index[0] == 6:
            self.happen()
        return super().read(index, mirrored)

    def happen(self) -> None:
        pass
