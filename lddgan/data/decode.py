"""One image: bytes or pixels -> RGB of the size that is trained on, or the reason why not."""

from __future__ import annotations

import io
import struct
import warnings
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, features

from lddgan.memory import is_out_of_memory
from lddgan.names import Convert

READS_AVIF: Final = "avif" in features.get_supported()
NO_AVIF: Final = "Pillow reads no AVIF here: pip install 'pillow>=11.3'"
FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", *["AVIF"] * READS_AVIF)
# What Pillow raises for damaged files.
UNREADABLE: Final = (OSError, SyntaxError, ValueError, EOFError, struct.error)
OTHERS: Final = (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
DAMAGED: Final = (*UNREADABLE, *OTHERS, Image.DecompressionBombError)
MEGAPIXELS: Final = 512  # at most; telephones make 200
# Pillow refuses what has more than twice as many (its warning, above as many, is not shown).
Image.MAX_IMAGE_PIXELS = MEGAPIXELS * 1_000_000 // 2

TRANSPARENT: Final = ("LA", "PA", "RGBA", "RGBa")
GREY_16: Final = ("I", "I;16", "I;16B", "I;16L", "I;16N")
KINDS: Final = (  # Pillow's modes beside RGB that `--convert rgb` reads, in words
    {"1": "black and white", "L": "grey", "P": "palette"}
    | {mode: mode for mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX")}
    | dict.fromkeys(TRANSPARENT, "with transparency")
    | dict.fromkeys(GREY_16, "grey of 16 bits")
)
TURNS: Final = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270")
UPRIGHT: Final = dict(enumerate((*TURNS, "TRANSVERSE", "ROTATE_90"), start=2))  # by orientation

Pixels = NDArray[np.uint8]  # [H,W,3]


class BadImage(Exception):
    """Why an image cannot be trained on, in words that follow its name; and the kind of it."""

    def __init__(self, why: str, kind: str | None = None) -> None:
        super().__init__(why)
        self.kind = kind or why.partition(" (")[0].removeprefix("is ")


class NotEncoded(BadImage):
    """It does not begin as an image of the FORMATS."""


def decode(data: bytes, convert: Convert = "strict", remarks: set[str] | None = None) -> Pixels:
    """An encoded image -> [H,W,3], upright by its EXIF orientation; of several pictures the first.

    What is not RGB is converted if `convert` is "rgb".  Adds to `remarks` what people should know
    of the image.  Raises BadImage.
    """
    if not data:
        raise BadImage("is empty")
    said = set[str]() if remarks is None else remarks
    with warnings.catch_warnings(action="ignore"):
        try:
            image = open_image(io.BytesIO(data))
            kind = KINDS.get(image.mode)
            if image.mode == "RGB" and "transparency" in image.info:
                kind = "with transparency"  # one colour
                if convert == "strict":
                    raise BadImage("has a transparent colour; --convert rgb reads it", kind)
            elif image.mode != "RGB" and (convert == "strict" or kind is None):
                way = f" ({kind}); --convert rgb reads it" if kind else " (values of unknown range)"
                raise BadImage(f"has the mode {image.mode}, not RGB{way}", kind)
            image.load()
            upright = image
            if (turn := UPRIGHT.get(orientation_of(image))) is not None:
                said.add("turned upright, as the camera says")
                upright = image.transpose(Image.Transpose[turn])
            pixels = np.asarray(upright) if convert == "strict" else to_rgb(upright)
            if kind is not None:
                said.add(f"{kind}, converted to RGB")
            if has_several(image):
                said.add("with several pictures: the first is taken")
            return pixels
        except DAMAGED as error:
            if is_out_of_memory(error):
                raise
            told = " ".join(str(error).split()) or type(error).__name__
            raise BadImage(f"is damaged ({told})") from error


def open_image(file: IO[bytes]) -> Image.Image:
    """Open an encoded image by its content. Raises NotEncoded; BadImage if it is too large."""
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"has more than {MEGAPIXELS} megapixels and may be an attack") from error
    except DAMAGED as error:
        if is_out_of_memory(error):
            raise
        file.seek(4)
        brand = file.read(8)
        if brand in (b"ftypavif", b"ftypavis") and not READS_AVIF:
            raise NotEncoded(f"is an AVIF image: {NO_AVIF}") from error
        if brand in (b"ftypheic", b"ftypheix", b"ftypmif1"):
            raise NotEncoded("is a HEIC image; save it as JPEG or PNG") from error
        known = ", ".join(FORMATS)
        raise NotEncoded(f"is no image of a known format ({known})", "not an image") from error


def orientation_of(image: Image.Image) -> Any:
    """The EXIF orientation of a loaded image; 1 (upright) if there is none or it is damaged."""
    # ImageOps.exif_transpose writes the EXIF anew, and fails where any part of it is damaged.
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGED:
        return 1


def has_several(image: Image.Image) -> bool:
    """Whether an image is an animation or has pages; damage behind the first does not count."""
    try:
        return bool(getattr(image, "is_animated", False))
    except DAMAGED:
        return True


def to_rgb(image: Image.Image) -> Pixels:
    """An image of a mode in KINDS, or RGB -> [H,W,3]: transparency over white, 16 bits scaled to 8.

    Raises BadImage for grey values that have more than 16 bits.
    """
    transparent = image.info.get("transparency")
    if image.mode in GREY_16:
        values = np.asarray(image).astype(np.int32)
        low, high = values.min(), values.max()
        if low < 0 or high > 0xFFFF:
            raise BadImage(f"has grey values beyond 16 bits ({low} to {high})")
        grey = np.where(values == transparent, 255, (values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if transparent is not None or image.mode in TRANSPARENT:
        over = Image.new("RGBA", image.size, "white")
        over.alpha_composite(image.convert("RGBA"))
        image = over
    return np.asarray(image.convert("RGB"))


def fit(pixels: Pixels, size: int) -> Pixels:
    """[H,W,3] -> [size,size,3]: resize the shorter side (bilinear, antialiased), cut the middle.

    As the predecessors do (torchvision's Resize and CenterCrop).  Raises BadImage for a small one.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < size:
        wanted = f"smaller than {size}x{size}"
        raise BadImage(f"is {width}x{height}, {wanted}", wanted)
    if min(height, width) > size:
        shape = [size * side // min(height, width) for side in (width, height)]
        pixels = np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR))
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]
