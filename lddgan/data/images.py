"""Images as the training takes them: read by index, the bad ones named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lddgan.data.decode import BadImage, Pixels, fit
from lddgan.data.sources import Source
from lddgan.errors import BadInput

OnBad = Literal["stop", "skip"]
MOST_TRIED: Final = 100  # images in a row that may be bad


class Images(Protocol):
    """N images, read by index: int64 [B] -> float32 [B,3,H,W] in [-1,1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


class Read(NamedTuple):
    """A batch of a source."""

    images: Tensor  # uint8 [B,3,size,size]
    bad: list[str]  # what is wrong with the images that others stand in for


class ImageFiles:
    """The images of a source, resized and cropped to `size`; float32 in [-1,1].

    A bad image raises BadInput, or (`on_bad` "skip") the next good one stands in for it.
    """

    def __init__(self, source: Source, size: int, on_bad: OnBad = "stop") -> None:
        self.source, self.size, self.on_bad = source, size, on_bad

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Tensor) -> Tensor:
        return to_float(self.checked(self.read(index.tolist())).images)

    def read(self, index: Sequence[int]) -> Read:
        """Images by index. Raises BadInput if MOST_TRIED in a row are bad."""
        bad: list[str] = []
        pixels = np.stack([self._good(number, bad) for number in index])
        return Read(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), bad)

    def checked(self, read: Read) -> Read:
        """What was read. Raises BadInput for a bad image that is not to be skipped."""
        if read.bad and self.on_bad == "stop":
            raise BadInput(f"{read.bad[0]}; leave it out, or train with --on-bad skip")
        return read

    def _good(self, number: int, bad: list[str]) -> Pixels:
        for tried in range(MOST_TRIED):
            at = (number + tried) % len(self.source)
            try:
                return fit(self.source.read(at), self.size)
            except BadImage as error:
                bad.append(f"{self.source.name(at)} {error}")
        raise BadInput(f"{MOST_TRIED} images in a row are bad, the last: {bad[-1]}")


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1,1]."""
    return images.float() / 127.5 - 1
