"""How far two results are apart. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Latents = NDArray[np.float32]


def relative_error(a: Latents, b: Latents) -> float:
    """Largest |a - b| / largest |b|; infinite if a is not finite."""
    error = float(np.abs(a - b).max() / np.abs(b).max())
    return error if np.isfinite(error) else float("inf")


def mean_error(a: Latents, b: Latents) -> float:
    """Mean |a - b| / largest |b|; infinite if a is not finite."""
    error = float(np.abs(a - b).mean(dtype=np.float64) / np.abs(b).max())
    return error if np.isfinite(error) else float("inf")


def grey_levels(a: Images, b: Images) -> int:
    """Largest difference of two uint8 images."""
    return int(_levels(a, b).max())


def mean_levels(a: Images, b: Images) -> float:
    """Mean difference of two uint8 images, in grey levels."""
    return float(_levels(a, b).mean(dtype=np.float64))


def changed(a: Images, b: Images, levels: int = 0) -> float:
    """Share of values that differ by more than `levels`."""
    return float((_levels(a, b) > levels).mean())


def psnr(a: Images, b: Images) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    mse = float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def is_sound(x_0: Latents, images: Images) -> bool:
    """Whether latents are finite and no image is of one value, which is what NaN becomes."""
    return bool(np.isfinite(x_0).all()) and not any_of_one_value(images)


def any_of_one_value(images: Images) -> bool:
    """Whether all values of an image are the same."""
    spaced = images[:, ::8, ::8]  # a GPU waits meanwhile: images that differ here are done with
    alike = images[spaced.min(axis=(1, 2, 3)) == spaced.max(axis=(1, 2, 3))]
    return bool((alike.min(axis=(1, 2, 3)) == alike.max(axis=(1, 2, 3))).any())


def _levels(a: Images, b: Images) -> NDArray[np.int16]:
    return np.abs(a.astype(np.int16) - b.astype(np.int16))
