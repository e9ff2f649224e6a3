"""Images of other modes become RGB if asked to, and photographs stand upright."""

from __future__ import annotations

import io
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from lddgan.data import decode as decode_module
from lddgan.data.decode import BadImage, decode
from lddgan.data.open_source import open_source
from tests.lddgan.data.support import encoded, picture

PIXELS = picture(7, 23, 17)
WORDS = np.random.default_rng(7).integers(0, 0x10000, (17, 23), np.uint16)
ORIENTATION = 0x0112


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey_rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=-1)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


# ---- other modes ----


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("L", kind) for kind in ("PNG", "JPEG", "BMP", "PPM")),
        *(("1", kind) for kind in ("PNG", "PPM", "TIFF")),
        *(("P", kind) for kind in ("PNG", "BMP", "TIFF", "GIF")),
    ],
)
def test_grey_and_palette_images_keep_their_colours(mode: str, kind: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    data = saved(image, kind)
    with pytest.raises(BadImage, match=r"has the mode \w, not RGB \(.+\); --convert rgb reads it$"):
        decode(data)
    shown = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(decode(data, "rgb") - shown).max() <= (80 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode: str, kind: str) -> None:
    alpha = np.linspace(0, 255, 17 * 23).reshape(17, 23).astype(np.uint8)
    colours = PIXELS if mode == "RGBA" else grey_rgb(PIXELS[..., 0])
    image = Image.fromarray(np.dstack([colours, alpha])).convert(mode)
    data = saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    expected = over_white(colours, alpha)
    assert np.abs(decode(data, "rgb") - expected).max() <= 1.01


def test_transparent_colours_of_png_and_gif_are_white() -> None:
    rgb, grey = PIXELS.copy(), PIXELS[..., 0].copy()
    rgb[3, 4], grey[grey == 9] = (1, 2, 3), 10
    grey[3, 4] = 9
    palette = Image.fromarray(grey).convert("P")  # a palette of all greys
    images = {
        saved(Image.fromarray(rgb), "PNG", transparency=(1, 2, 3)): rgb,
        saved(Image.fromarray(grey), "PNG", transparency=9): grey_rgb(grey),
        saved(palette, "PNG", transparency=9): grey_rgb(grey),
        saved(palette, "PNG", transparency=bytes([255] * 9 + [0])): grey_rgb(grey),
        saved(palette, "GIF", transparency=9): grey_rgb(grey),
    }
    for data, expected in images.items():
        expected[3, 4] = 255
        assert np.array_equal(decode(data, "rgb"), expected)


def test_cmyk_is_read_as_it_was_before_it_became_a_jpeg() -> None:
    smooth = np.zeros((32, 32, 3), np.uint8)
    smooth[:, :16], smooth[:, 16:] = (220, 40, 90), (30, 120, 200)
    cmyk = Image.fromarray(smooth).convert("CMYK")
    data = saved(cmyk, "JPEG", quality=98)
    assert b"Adobe" in data, "this one is inverted"
    for each in (data, saved(cmyk, "TIFF")):
        assert np.abs(decode(each, "rgb")[:, [4, 28]].astype(int) - smooth[:, [4, 28]]).max() <= 6


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colour_spaces_are_converted(mode: str) -> None:
    from PIL import ImageCms

    image = Image.fromarray(np.full((8, 8, 3), (200, 60, 120), np.uint8))
    if mode == "LAB":
        spaces = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        other = ImageCms.profileToProfile(image, *spaces, outputMode="LAB")
        assert other is not None
    else:
        other = image.convert(mode)
    found = decode(saved(other, "TIFF"), "rgb")
    assert np.abs(found.astype(int) - (200, 60, 120)).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PGM", "big-endian TIFF", "32-bit TIFF"])
def test_sixteen_bits_are_scaled_to_eight(form: str) -> None:
    data = {
        "PNG": lambda: saved(Image.fromarray(WORDS), "PNG"),
        "TIFF": lambda: saved(Image.fromarray(WORDS), "TIFF"),
        "PGM": lambda: b"P5 23 17 65535\n" + WORDS.astype(">u2").tobytes(),
        "big-endian TIFF": lambda: tiff(WORDS.astype(">u2")),
        "32-bit TIFF": lambda: saved(Image.fromarray(WORDS.astype(np.int32)), "TIFF"),
    }[form]()
    expected = grey_rgb(np.rint(WORDS / 257).astype(int))
    assert np.array_equal(decode(data, "rgb"), expected)
    with pytest.raises(BadImage, match="grey of 16 bits"):
        decode(data)


def tiff(values: np.ndarray) -> bytes:
    """A TIFF of big-endian 16-bit grey."""
    height, width = values.shape
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1}
    tags |= {278: height, 279: values.nbytes}
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack(">2sHI", b"MM", 42, 8 + values.nbytes)
    return start + values.tobytes() + struct.pack(">H", len(tags)) + entries + bytes(4)


def test_a_transparent_grey_of_sixteen_bits_is_white() -> None:
    data = saved(Image.fromarray(WORDS), "PNG", transparency=int(WORDS[2, 5]))
    expected = np.rint(WORDS / 257)
    expected[WORDS[2, 5] == WORDS] = 255
    assert np.array_equal(decode(data, "rgb")[..., 1], expected)


def test_values_of_unknown_range_are_refused() -> None:
    real = saved(Image.fromarray(WORDS.astype(np.float32)), "TIFF")
    for convert in ("strict", "rgb"):
        with pytest.raises(BadImage, match=r"mode F, not RGB \(values of unknown range\)$"):
            decode(real, convert)
    for value in (-1, 0x10000):
        wide = saved(Image.fromarray(np.full((9, 9), value, np.int32)), "TIFF")
        with pytest.raises(BadImage, match=f"beyond 16 bits .{value} to {value}"):
            decode(wide, "rgb")


# ---- orientation ----


def turned(orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(Image.fromarray(PIXELS), kind, exif=exif)


def by_hand(orientation: int, pixels: np.ndarray = PIXELS) -> np.ndarray:
    """By the EXIF standard, which says where row 0 and column 0 of the file are seen."""
    return {
        1: pixels,  # top, left
        2: pixels[:, ::-1],  # top, right
        3: pixels[::-1, ::-1],  # bottom, right
        4: pixels[::-1],  # bottom, left
        5: pixels.swapaxes(0, 1),  # left, top
        6: pixels[::-1].swapaxes(0, 1),  # right, top
        7: pixels[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: pixels[:, ::-1].swapaxes(0, 1),  # left, bottom
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(orientation: int) -> None:
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decode(turned(orientation, kind)), by_hand(orientation))
    for kind in ("JPEG", "WEBP"):  # with losses
        data = turned(orientation, kind)
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(decode(data), np.asarray(ImageOps.exif_transpose(image)))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    found = decode(saved(Image.fromarray(WORDS), "PNG", exif=exif), "rgb")
    assert np.array_equal(found[..., 0], np.rint(by_hand(orientation, WORDS) / 257))


def test_photographs_stand_upright_in_every_source(tmp_path: Path) -> None:
    data = turned(8)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", data)
    sources = [tmp_path / "folder", tmp_path / "a.zip"]
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "lmdb"), map_size=1 << 20) as database:
        with database.begin(write=True) as transaction:
            transaction.put(b"0", data)
        sources.append(tmp_path / "lmdb")
    for path in sources:
        assert np.array_equal(open_source(path).read(0), by_hand(8))


def test_damaged_exif_leaves_a_good_image_as_it_is() -> None:
    plain = encoded(PIXELS, "JPEG")
    for exif in (b"II*\0\xff\xff\xff\xff", b"MM\0*", b"", b"\0" * 40, b"II*\0\x08\0\0\0\x05\0\x12"):
        marker = b"Exif\0\0" + exif
        segment = b"\xff\xe1" + struct.pack(">H", len(marker) + 2) + marker
        assert np.array_equal(decode(plain[:2] + segment + plain[2:]), decode(plain))
    for number in (0, 9, 65535):  # no orientations
        assert np.array_equal(decode(turned(number)), PIXELS)


# ---- several pictures, other formats ----


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_pictures_the_first_is_taken_and_said(kind: str) -> None:
    first, second = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    data = saved(first, kind, save_all=True, append_images=[second])
    remarks = set[str]()
    found = decode(data, "rgb", remarks)
    assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3
    assert "with several pictures: the first is taken" in remarks
    remarks.clear()
    decode(saved(first, kind), "rgb", remarks)
    assert "with several pictures: the first is taken" not in remarks


def test_damage_behind_the_first_picture_spoils_nothing() -> None:
    rng = np.random.default_rng(1)
    first, *others = (Image.fromarray(rng.integers(0, 256, (30, 30), np.uint8)) for _ in range(3))
    whole = saved(first, "GIF", save_all=True, append_images=others)
    alone = len(saved(first, "GIF"))
    for end in range(alone + 20, len(whole), 20):
        remarks = set[str]()
        assert np.array_equal(decode(whole[:end], "rgb", remarks)[..., 0], np.asarray(first))
    assert "with several pictures: the first is taken" in remarks


@pytest.mark.parametrize("kind", ["AVIF", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_damage_of_any_kind_is_a_bad_image(kind: str) -> None:
    if kind not in decode_module.FORMATS:
        pytest.skip("this Pillow does not read it")
    rng = np.random.default_rng(2)
    whole = np.frombuffer(saved(Image.fromarray(picture(1)), kind), np.uint8)
    good = 0
    for _ in range(60):
        data = whole.copy()
        data[rng.integers(0, len(data), 12)] = rng.integers(0, 256, 12)
        with suppress(BadImage):  # and nothing else
            decode(data.tobytes(), "rgb")
            good += 1
    assert good < 60


def test_avif_is_read_or_its_lack_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    if not decode_module.READS_AVIF:
        pytest.skip("this Pillow reads no AVIF")
    data = saved(Image.new("RGB", (16, 16), (10, 200, 90)), "AVIF")
    assert np.abs(decode(data).astype(int) - (10, 200, 90)).max() <= 4
    monkeypatch.setattr(decode_module, "READS_AVIF", False)
    monkeypatch.setattr(decode_module, "FORMATS", ("JPEG", "PNG"))
    with pytest.raises(BadImage, match=r"^is an AVIF image: .*pip install 'pillow>=11\.3'$"):
        decode(data)


def test_heic_by_another_name_is_told_from_damage() -> None:
    with pytest.raises(BadImage, match="is a HEIC image; save it as JPEG or PNG"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))


def test_a_transparent_colour_is_not_trained_on_in_silence() -> None:
    image = Image.new("RGB", (4, 4), (9, 8, 7))
    image.putpixel((0, 0), (1, 2, 3))
    data = saved(image, "PNG", transparency=(9, 8, 7))
    with pytest.raises(BadImage, match=r"^has a transparent colour; --convert rgb reads it$"):
        decode(data)
    read = decode(data, "rgb")
    assert (read[0, 0] == (1, 2, 3)).all() and (read[1:] == 255).all()


def test_memory_that_runs_out_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", short)
    with pytest.raises(MemoryError):
        decode(encoded(PIXELS))
