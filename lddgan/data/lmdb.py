"""Images in an LMDB, as the LSUN and CelebA-HQ communities keep them."""

from __future__ import annotations

import codecs
import io
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from lddgan.data.cifar import BAD_PICKLE, OnlyArrays
from lddgan.data.decode import FORMATS, BadImage, NotEncoded, Pixels, decode
from lddgan.data.sources import Source, opened
from lddgan.errors import BadInput
from lddgan.extras import require
from lddgan.files import utf8_name

AS_FILES: Final = "write its images as files into a folder, and give that"
FILE: Final = "data.mdb"  # in a folder that is an LMDB
SAMPLED: Final = 32  # entries that are looked at when an LMDB is opened
MOST_FORMS: Final = 64  # of keys; of more, each key is a name or a hash
MIN_SIDE: Final = 8  # pixels of a raw image; fewer bytes are a number or a word
MIN_SPREAD: Final = 64  # between the bytes of float32; those of a dull photo may all be 171 to 195
MIN_CONTRAST: Final = 1.5  # between neighbours in the wrong layout and in the right one
MIN_DETAILED: Final = 1.15  # the same where neighbours differ by more than DETAIL
MOST_GREY: Final = 0.8  # between channels and neighbours: less in pixels that are almost grey
DETAIL: Final = 8  # grey levels, across and down together; a few odd bytes make less
COUNTS: Final = re.compile(
    rb"__len__|length|len|count|(num|n|total)[-_]?(samples|images|examples|items|entries)", re.I
)
BOOKKEEPING: Final = re.compile(
    COUNTS.pattern + rb"|__\w+__|keys|size|total|meta[-_]?(data|info)?|info|labels|classes", re.I
)
SIZED: Final = (  # keys with the size first, as rosinality's are: 64-00000; or last
    re.compile(rb"\D*0*([1-9]\d*)\D+\d.*", re.S),
    re.compile(rb".*\d\D+0*([1-9]\d*)\D*", re.S),
)
NO_IMAGES: Final = {
    "pickled": f"its values are pickled objects; {AS_FILES}",
    "text": "its values are text",
    "floats": f"its values are raw float32, not bytes; {AS_FILES}",
    "unknown": f"its values are neither {', '.join(FORMATS)} nor raw RGB of squares; {AS_FILES}",
}

Get = Callable[[bytes], bytes]  # the value of a key


class Lmdb(Source):
    """Encoded images under any keys, in their order, or raw RGB of square images; of a `size`.

    Raises BadInput if there are none, some are missing, or the file is damaged or cut short.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        super().__init__(path)
        environment = opened(path, open_environment)
        import lmdb

        try:
            with environment.begin() as transaction:
                get = transaction.get
                keys = list(transaction.cursor().iternext(values=False))
                others = bookkeeping(path, keys, get)
                images = [key for key in keys if key not in others] if others else keys
                self.names = of_size(path, images, size, get)
                self.planes = stored_as_planes(map(get, sample(self.names, SAMPLED)))
                counts = {key: get(key) for key in others if COUNTS.fullmatch(key)}
        except lmdb.Error as error:
            raise BadInput(f"{path} is damaged ({error}); copy or download it again") from error
        check_keys(path, self.names)
        check_counts(path, counts, {len(self), len(images)})
        other_sizes = len(images) - len(self)  # `+=` leaves out what is 0
        self.passed_over += {"bookkeeping entries": len(others), "of other sizes": other_sizes}
        if self.planes:
            self.notes.append(f"the raw images of {path} are read as planes (CHW), as they look")

    def name(self, index: int) -> str:
        return f"key {self.names[index].decode(errors='backslashreplace')} in {self.path}"

    def read(self, index: int) -> Pixels:
        environment = opened(self.path, open_environment)
        import lmdb

        try:
            with environment.begin() as transaction:
                data = transaction.get(self.names[index], b"")
        except lmdb.Error as error:
            raise BadImage(f"cannot be read ({error})") from error
        try:
            return decode(data, self.convert, self.remarks)
        except NotEncoded:
            if not raw_side(data):
                raise
            return raw_pixels(data, self.planes)


def is_lmdb(file: Path) -> bool:
    """Whether a file begins as an LMDB: with a header of 16 bytes and a magic number."""
    with file.open("rb") as stream:
        return stream.read(20)[16:] == struct.pack("=I", 0xBEEFC0DE)


# ---- which entries are images ----


def bookkeeping(path: Path, keys: Sequence[bytes], get: Get) -> set[bytes]:
    """The keys of what is no image (lengths, labels, ...), by a sample of each form of keys.

    Raises BadInput if all are.
    """
    if not keys:
        raise BadInput(f"{path} is an LMDB without entries")
    forms = by_form(keys)
    many = max(1, SAMPLED // len(forms))
    kinds = {form: {kind_of(key, get(key)) for key in sample(forms[form], many)} for form in forms}
    if not any(found & {"encoded", "raw"} for found in kinds.values()):
        most = max(forms, key=lambda form: len(forms[form]))
        raise BadInput(f"{path} holds no images: {NO_IMAGES[min(kinds[most])]}")
    return {key for form in forms if kinds[form] <= {"text", "pickled"} for key in forms[form]}


def by_form(keys: Sequence[bytes]) -> dict[bytes, list[bytes]]:
    """Keys by what is left of them without digits; names and hashes as one form."""
    forms: dict[bytes, list[bytes]] = {}
    for key in keys:
        forms.setdefault(key.translate(None, b"0123456789"), []).append(key)
        if len(forms) > MOST_FORMS:
            known = {key: [key] for key in keys if BOOKKEEPING.fullmatch(key)}
            return {b"": [key for key in keys if key not in known]} | known
    return forms


def sample(keys: Sequence[bytes], count: int) -> Sequence[bytes]:
    """At most `count` keys, spread evenly."""
    return keys[:: math.ceil(len(keys) / count)]


def kind_of(key: bytes, data: bytes) -> str:
    """What an entry is by its value, and by its name: encoded, raw, or one of NO_IMAGES."""
    if is_encoded(data):
        return "encoded"
    if data[:1] == b"\x80" and data[1:2] <= b"\5" and data.endswith(b"."):
        return "pickled"
    if BOOKKEEPING.fullmatch(key):
        return "text"
    if raw_side(data) and not is_text(data):
        return "floats" if looks_float(data) else "raw"
    return "text" if is_text(data[:1000]) else "unknown"


def is_text(data: bytes) -> bool:
    try:  # the last character may be cut
        text = codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return "".join(text.split()).isprintable()


def is_encoded(data: bytes) -> bool:
    """Whether it begins as an image of the FORMATS, or is the nothing that is left of one."""
    try:
        decode(data)
    except BadImage as error:
        return not isinstance(error, NotEncoded)
    return True


def check_keys(path: Path, keys: Sequence[bytes]) -> None:
    """Raise BadInput if the keys are numbers from 0 with gaps."""
    numbers = {int(key) for key in keys} if all(key.isdigit() for key in keys) else {0}
    missing = max(numbers) + 1 - len(numbers)
    if 0 in numbers and missing:
        known = f"{path} has keys from 0 to {max(numbers)}"
        raise BadInput(f"{known}, but {missing:,} of these are missing; copy or download it again")


def check_counts(path: Path, counts: Mapping[bytes, bytes], held: set[int]) -> None:
    """Raise BadInput if a count of the images, in text or pickled, is more than are `held`."""
    for key, data in counts.items():
        try:
            count = int(data) if data.strip().isdigit() else OnlyArrays(io.BytesIO(data)).load()
        except BAD_PICKLE:
            continue
        if isinstance(count, int) and count > min(held) and count not in held:
            says = f"{path} says that it holds {count:,} images ({key.decode()})"
            raise BadInput(f"{says}, but {min(held):,} are there; copy or download it again")


# ---- several sizes of each image ----


def of_size(path: Path, keys: list[bytes], size: int | None, get: Get) -> list[bytes]:
    """The keys of the images of `size`. Raises BadInput if there are none, or several sizes."""
    sizes = next(filter(None, (by_size(keys, get, form) for form in SIZED)), {})
    known = ", ".join(map(str, sorted(sizes)))
    if size is None:
        if len(sizes) > 1:
            raise BadInput(f"{path} holds images of several sizes ({known}); choose by --lmdb-size")
        return keys
    if size not in sizes:
        other = f"of {known}" if sizes else "images by no size; leave it out"
        raise BadInput(f"{path} holds no images of --lmdb-size {size}, but {other}")
    return sizes[size]


def by_size(keys: Sequence[bytes], get: Get, form: re.Pattern[bytes]) -> dict[int, list[bytes]]:
    """Keys by the side of their images, if that is the number of each; {} if it is not."""
    sizes: dict[int, list[bytes]] = {}
    for key in keys:
        found = form.fullmatch(key)
        if found is None or len(sizes) > MOST_FORMS:
            return {}
        sizes.setdefault(int(found[1]), []).append(key)
    good = [any(has_side(size, get(key)) for key in sample(of, 4)) for size, of in sizes.items()]
    return sizes if all(good) else {}


def has_side(size: int, data: bytes) -> bool:
    """Whether it is an encoded image of this width or height, or a raw one."""
    try:
        return size in decode(data, "rgb").shape[:2]
    except BadImage as error:
        return isinstance(error, NotEncoded) and size == raw_side(data)


# ---- raw images ----


def raw_side(data: bytes) -> int:
    """Side of the square whose raw RGB this may be; 0 for none."""
    side = math.isqrt(len(data) // 3)
    return side if side >= MIN_SIDE and len(data) == 3 * side**2 else 0


def raw_pixels(data: bytes, planes: bool) -> Pixels:
    """The raw RGB of a square image -> [H,W,3]."""
    side, values = raw_side(data), np.frombuffer(data, np.uint8)
    if planes:
        return values.reshape(3, side, side).transpose(1, 2, 0)
    return values.reshape(side, side, 3)


def looks_float(data: bytes) -> bool:
    """Whether these make sense as float32 of [0,1] to [-256,256]; a photo's bytes do not."""
    values = np.abs(np.frombuffer(data, "<f4"))
    sane = (values == 0) | (values > 1e-12) & (values <= 256)
    return bool(sane.all()) and max(data) - min(data) > MIN_SPREAD


def stored_as_planes(values: Iterable[bytes]) -> bool:
    """Whether most raw images among the values of an LMDB are [3,H,W] rather than [H,W,3]."""
    raw = (data for data in values if raw_side(data) and not is_encoded(data))
    votes = Counter(looks_planar(data) for data in raw if data.count(data[0]) < len(data))
    return votes[True] > votes[False]


def looks_planar(data: bytes) -> bool:
    """Whether neighbours are alike in [3,H,W] and not in [H,W,3]; in noise they never are."""
    interleaved, planar = (raw_pixels(data, planes).astype(np.int16) for planes in (False, True))
    apart, near = (
        sum(np.abs(np.diff(pixels, axis=axis)).mean() for axis in (0, 1))
        for pixels in (interleaved, planar)
    )
    channels, across = np.diff(interleaved, axis=2), np.diff(planar, axis=1)  # alike in planes
    is_grey = np.abs(channels).mean() <= MOST_GREY * np.abs(across).mean()
    least = MIN_DETAILED if near > DETAIL else MIN_CONTRAST
    return bool(apart > least * near and (near == 0 or not is_grey))


def open_environment(path: Path) -> Any:
    """Open an LMDB for reading. Raises BadInput if it is none, or is cut short."""
    require("lmdb")
    import lmdb

    is_folder = path.is_dir()
    try:
        with utf8_name(path) as name:
            environment = lmdb.open(
                name, subdir=is_folder, readonly=True, lock=False, readahead=False, meminit=False
            )
    except lmdb.Error as error:
        raise BadInput(f"{path} cannot be opened as an LMDB: {error}") from error
    file = path / FILE if is_folder else path
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.stat().st_size < needed:
        has = f"it has {file.stat().st_size:,} bytes and says that it has {needed:,}"
        raise BadInput(f"{file} is cut short: {has}; copy or download it again")
    return environment
