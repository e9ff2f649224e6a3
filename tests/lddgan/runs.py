"""What the tests of the training commands share."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lddgan.checkpoint import load_checkpoint

AUTOENCODER, MODEL = "autoencoder.safetensors", "model.safetensors"
RUN = Path("runs/digits")


def options(**values: object) -> list[str]:
    """{"generator__nf": 8} -> ["--set", "generator.nf=8"]"""
    return [f"--set={name.replace('__', '.')}={value}" for name, value in values.items()]


TINY = options(
    generator__nf=8,
    generator__nz=6,
    generator__z_emb_dim=8,
    generator__mapping_layers=1,
    discriminator__ngf=4,
    discriminator__t_emb_dim=8,
    training__batch=8,
    autoencoder_training__batch=8,
)


def write_photos(folder: Path, size: int, count: int = 16) -> Path:
    """Crops of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    corners = [(top, left) for top in (0, 171) for left in (0, 128, 256, 384)]
    photos = [(photo, corner) for photo in load_sample_images().images for corner in corners]
    for number, (photo, (top, left)) in enumerate(photos[:count]):
        crop = photo[top : top + size, left : left + size]
        Image.fromarray(crop).save(folder / f"{number:02d}.png")
    return folder


def interrupted(lddgan: Any, what: type, *args: object) -> Any:
    """The outcome of a command with Ctrl-C in the first step of `what`."""
    step = what.step

    def stop(self: Any, batch: torch.Tensor, number: int, progress: float) -> Any:
        if number == 0:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, number, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(what, "step", stop)
        return lddgan(*args)


def sampled(lddgan: Any, checkpoint: Path | str) -> np.ndarray:
    """The first images that a checkpoint makes."""
    outcome = lddgan("sample", "--checkpoint", checkpoint, "--num", 4, "--out", "x.npz")
    assert outcome.code == 0, outcome.err
    return np.load("x.npz")["images"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def generator_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / MODEL).generator.state_dict()


OF_DIGITS = ("train", "--dataset", "digits", "--autoencoder", "{files}/" + AUTOENCODER)
FOR_TRAIN = (*OF_DIGITS, "--steps", 1, "--data", "{photos}")
FOR_AUTOENCODER = ("train-autoencoder", "--dataset", "digits", "--steps", 1, *TINY)
CIFAR = ("train-autoencoder", "--dataset", "cifar10", "--steps", 1, *options(autoencoder__ch=32))
NO_LPIPS = ("--perceptual-weight", 0)
