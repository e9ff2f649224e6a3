"""What images come in that is not read as it is: told for what it is, with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

AS_FILES: Final = "write its images as files into a folder, and give that"
COMPRESSED: Final = (  # by the first bytes
    {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    | {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "RAR"}
)
TABLES: Final = {
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"\x93NUMPY": "numpy",
} | {bytes([0x80, version]): "pickle" for version in range(2, 6)}
ARCHIVE: Final = re.compile(r"\.(zip|tar|tgz|gz|bz2|xz|zst|7z|rar)$", re.I)
TABLE: Final = re.compile(r"\.(tfrecords?|h5|hdf5|parquet|arrow|np[yz]|pkl|pickle|pth?)\b", re.I)
HIDDEN: Final = re.compile(r"(^|/)(\.[^./]|__MACOSX/)")
MOST_NAMED: Final = 10


def why_not_read(path: Path) -> str:
    """What a file is and what to do with it, as a sentence."""
    with path.open("rb") as file:
        head = file.read(16)
    for magic, kind in COMPRESSED.items():
        if head.startswith(magic):
            return f"{path} is compressed ({kind}): unpack it, and give what comes out"
    for magic, kind in TABLES.items():
        if head.startswith(magic):
            return f"{path} is a file of another kind ({kind}): {AS_FILES}"
    length = int.from_bytes(head[:8], "little")  # of the first record; an Example begins by \n
    is_example = head[12:13] == b"\n" and length + 16 <= path.stat().st_size
    if is_example or ".tfrecord" in path.name.lower():
        return f"{path} is a file of another kind (TFRecord): {AS_FILES}"
    return f"{path} is no folder of images, zip or tar archive, LMDB or archive of CIFAR-10"


def why_empty(path: Path, names: Iterable[str]) -> str | None:
    """What the files `names` are that a folder or archive holds in place of images, or None."""
    visible = sorted(name for name in names if not HIDDEN.search(name))
    lmdbs = sorted({lmdb for name in visible if (lmdb := lmdb_of(PurePosixPath(name)))})
    if inside := lmdbs or [name for name in visible if ARCHIVE.search(name)]:
        into, unpack = path, ""
        if not path.is_dir():
            bare = inside[0] == "."  # an LMDB that would lie among other files
            into = path.with_name(f"{path.stem}_unpacked") if bare else path.parent
            unpack = f"unpack it {f'into {into}' if bare else 'in its folder'}, then "
        given = listed(into / name for name in inside)
        which = "give" if len(inside) == 1 else "give one of"
        return f"holds {'LMDBs' if lmdbs else 'archives'}, not images: {unpack}{which} {given}"
    if tables := [name for name in visible if TABLE.search(name)]:
        return f"holds files that are not read ({listed(tables)}): {AS_FILES}"
    return None


def lmdb_of(file: PurePosixPath) -> str | None:
    """The LMDB that a file is, or the folder of one; None otherwise."""
    if file.name == "data.mdb":
        return str(file.parent)
    return str(file) if file.suffix in (".mdb", ".lmdb") and file.name != "lock.mdb" else None


def listed(names: Iterable[object]) -> str:
    texts = [str(name) for name in names]
    return ", ".join(texts[:MOST_NAMED]) + (", ..." if len(texts) > MOST_NAMED else "")
