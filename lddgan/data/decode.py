"""One image: bytes or pixels -> RGB of the size that is trained on, or the reason why not."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
UNREADABLE: Final = (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError)

Pixels = NDArray[np.uint8]  # [H,W,3]


class BadImage(Exception):
    """Why an image cannot be trained on, in words that follow its name."""


class NotEncoded(BadImage):
    """It does not begin as an image of the FORMATS."""


def decode(data: bytes) -> Pixels:
    """An encoded RGB image -> [H,W,3]. Raises BadImage."""
    if not data:
        raise BadImage("is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("has so many pixels that it may be an attack") from error
    except UNREADABLE as error:
        raise NotEncoded(f"is no image of a known format ({', '.join(FORMATS)})") from error
    if image.mode != "RGB":
        raise BadImage(f"has the mode {image.mode}, not RGB")
    try:
        return np.asarray(image)
    except UNREADABLE as error:
        raise BadImage(f"is damaged ({' '.join(str(error).split()) or 'no memory'})") from error


def fit(pixels: Pixels, size: int) -> Pixels:
    """[H,W,3] -> [size,size,3]: resize the shorter side (bilinear, antialiased), cut the middle.

    As the predecessors do (torchvision's Resize and CenterCrop).  Raises BadImage for a small one.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < size:
        raise BadImage(f"is {width}x{height}, smaller than {size}x{size}")
    if min(height, width) > size:
        shape = [size * side // min(height, width) for side in (width, height)]
        pixels = np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR))
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]
