"""Images as the training takes them: read by index; bad ones are named and replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lddgan.data.decode import BadImage, Pixels, fit
from lddgan.data.sources import Source
from lddgan.errors import BadInput
from lddgan.extras import require

OnBad = Literal["stop", "skip"]  # what to do with a bad image

MAX_BAD_IN_A_ROW: Final = 10_000  # they are read in seconds
DIGIT_SIZE: Final = 32  # pixels a side


class Read(NamedTuple):
    """Some images, or the latents of some images."""

    values: Tensor  # uint8 or float32 [B,3,H,W], or float32 [B,M,h,w]
    bad: list[str]  # errors of the images that were replaced by the next good one


class Images(Protocol):
    """N images (or their latents) that are read by index, each mirrored or not."""

    def __len__(self) -> int: ...

    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read: ...


class InMemory:
    """Images float32 [N,3,H,W] in [-1,1]."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
        return Read(flipped(self.images[torch.tensor(index)], mirrored), [])


class ImageFiles:
    """The images of a source, resized and cropped to `size`; a bad one is replaced by the next."""

    def __init__(self, source: Source, size: int) -> None:
        self.source, self.size = source, size
        self.bad: dict[int, str] = {}  # name and error of the bad images found so far

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
        """Images by index, uint8. Raises BadInput if all are bad, or MAX_BAD_IN_A_ROW in a row."""
        bad: list[str] = []
        pixels = np.stack([self._good(number, bad) for number in index])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        return Read(flipped(images, mirrored), bad)

    def _good(self, number: int, bad: list[str]) -> Pixels:
        """[size,size,3] of an image or the next good one; appends the errors before it to `bad`."""
        most = min(len(self.source), MAX_BAD_IN_A_ROW)
        for tried in range(most):
            at = (number + tried) % len(self.source)
            if at not in self.bad:
                try:
                    return fit(self.source.read(at), self.size)
                except BadImage as error:
                    self.bad[at] = f"{self.source.name(at)} {error}"
            bad.append(self.bad[at])
        which = f"all {most:,} images" if most == len(self.source) else f"{most:,} images in a row"
        raise BadInput(f"{which} are bad, the last: {bad[-1]}")


def read_unmirrored(images: Images, index: Sequence[int]) -> Read:
    """Images by index, none of them mirrored."""
    return images.read(index, [False] * len(index))


def flipped(images: Tensor, mirrored: Sequence[bool]) -> Tensor:
    """Exchange left and right in those of [B,C,H,W] that are to be mirrored."""
    which = torch.tensor(mirrored)
    return torch.where(which[:, None, None, None], images.flip(3), images)


def refuse_bad(bad: Sequence[str], on_bad: OnBad) -> None:
    """Raise BadInput if there are bad images and they may not be skipped."""
    if bad and on_bad == "stop":
        raise BadInput(f"{bad[0]}; leave it out, or give --on-bad skip")


def to_float(values: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1,1]; what is float32 already stays as it is."""
    return values.float() / 127.5 - 1 if values.dtype == torch.uint8 else values


def to_pixels(image: Tensor) -> Pixels:
    """[B,3,H,W] in [-1,1], or beyond -> uint8 [B,H,W,3]."""
    grey = ((image.clamp(-1, 1) + 1) * 127.5).round().byte()
    return grey.permute(0, 2, 3, 1).cpu().numpy()


# ---- scikit-learn's scanned digits, which need no download ----


def digits() -> Tensor:
    """scikit-learn's 1,797 scans of handwritten digits, enlarged: float32 [1797,3,32,32] in [-1,1].

    Raises LddganError with the line to run if scikit-learn is missing.
    """
    require("sklearn")
    from sklearn.datasets import load_digits

    return enlarge(torch.from_numpy(load_digits().images))


def enlarge(scans: Tensor) -> Tensor:
    """Scans [N,8,8] in 0..16 -> float32 [N,3,32,32] in [-1,1], bicubically."""
    grey = scans.float()[:, None] / 16 * 2 - 1  # [N,1,8,8]
    return F.interpolate(grey, DIGIT_SIZE, mode="bicubic").clamp(-1, 1).repeat(1, 3, 1, 1)
