"""One image: bytes or pixels -> RGB of the size that is trained on, or the reason why not."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

RGB: Final = "RGB"
ENCODED: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")  # what an LMDB may hold
UNREADABLE: Final = (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError)

Pixels = NDArray[np.uint8]  # [H,W,3]


class BadImage(Exception):
    """Why an image cannot be trained on, in words that follow its name."""


def has_header(data: bytes) -> bool:
    """Whether bytes begin as an encoded image; the rest may be damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(data), formats=ENCODED)
    except Image.DecompressionBombError:
        return True
    except UNREADABLE:
        return False
    return True


def decode(data: bytes) -> Pixels:
    """An encoded RGB image -> [H,W,3]. Raises BadImage."""
    if not data:
        raise BadImage("is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if image.mode != RGB:
                raise BadImage(f"has the mode {image.mode}, not {RGB}")
            return np.asarray(image)
    except UnidentifiedImageError as error:
        raise BadImage("is no image that Pillow knows") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(
            "has so many pixels that it may be an attack (a decompression bomb)"
        ) from error
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
