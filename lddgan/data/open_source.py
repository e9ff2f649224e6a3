"""Opening the images at a path, of whatever kind."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

from lddgan.data.cifar import FOLDERS, Cifar10, in_archive, in_folder
from lddgan.data.listing import SUFFIXES, describe_passed_over
from lddgan.data.lmdb import AS_FILES, FILE, Lmdb, is_lmdb
from lddgan.data.sources import Folder, Source, Tar, Zip, is_tar
from lddgan.errors import BadInput
from lddgan.names import Convert

FIRST_BYTES: Final = (
    {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    | {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "RAR", b"\x93NUMPY": "numpy", b"PAR1": "Parquet"}
    | {b"\x89HDF\r\n\x1a\n": "HDF5", b"ARROW1": "Arrow"}
    | {bytes([0x80, version]): "pickle" for version in range(2, 6)}
)
COMPRESSED: Final = ("gzip", "bzip2", "xz", "zstd", "7z", "RAR")
ARCHIVE: Final = re.compile(r"\.(zip|tar|tgz|gz|bz2|xz|zst|7z|rar)$", re.I)
TABLE: Final = re.compile(r"\.(tfrecords?|h5|hdf5|parquet|arrow|np[yz]|pkl|pickle|pth?)\b", re.I)
HIDDEN: Final = re.compile(r"(^|/)(\.[^./]|__MACOSX/)")
MOST_NAMED: Final = 10


def open_source(path: Path, convert: Convert = "strict", lmdb_size: int | None = None) -> Source:
    """Open the images at a path. Raises BadInput if there are none, or they are damaged.

    `lmdb_size`: which to take of an LMDB with several sizes of each image.
    """
    if not path.exists():
        raise BadInput(f"{path} does not exist")
    source = _folder(path, lmdb_size) if path.is_dir() else _file(path, lmdb_size)
    if not len(source):
        files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        inside = source.others or [file.relative_to(path).as_posix() for file in files]
        nothing = f"holds no images ({', '.join(SUFFIXES)})"
        nothing += describe_passed_over(source.passed_over)
        raise BadInput(f"{path} {why_empty(path, inside) or nothing}")
    if lmdb_size is not None and not isinstance(source, Lmdb):
        raise BadInput(f"{path} is no LMDB; leave out --lmdb-size")
    source.convert = convert
    return source


def _folder(path: Path, lmdb_size: int | None) -> Source:
    files = Folder(path)
    for folder in (path, *(path / name for name in FOLDERS)):
        source: Source | None = None
        if (folder / FILE).is_file():
            source = Lmdb(folder, lmdb_size)
        elif batches := in_folder(folder):
            source = Cifar10(folder, batches)
        if source is not None:
            source.passed_over += {"images beside them": len(files)}  # what is 0 is left out
            return source
    return files


def _file(path: Path, lmdb_size: int | None) -> Source:
    if not path.is_file():
        raise BadInput(f"{path} is neither a folder nor a file")
    if path.suffix == Path(FILE).suffix or is_lmdb(path):
        return Lmdb(path, lmdb_size)
    is_plain = is_tar(path)
    if not is_plain and (path.suffix == ".zip" or zipfile.is_zipfile(path)):
        return Zip(path)
    if (is_plain or tarfile.is_tarfile(path)) and (batches := in_archive(path)):
        return Cifar10(path, batches)
    if is_plain:
        return Tar(path)
    raise BadInput(why_not_read(path))


# ---- what is not read, and what to do with it ----


def why_not_read(path: Path) -> str:
    """What a file is and what to do with it, as a sentence."""
    with path.open("rb") as file:
        head = file.read(16)
    kind = next((kind for magic, kind in FIRST_BYTES.items() if head.startswith(magic)), "")
    length = int.from_bytes(head[:8], "little")  # of the first record; an Example begins by \n
    is_example = head[12:13] == b"\n" and length + 16 <= path.stat().st_size
    if not kind and (is_example or ".tfrecord" in path.name.lower()):
        kind = "TFRecord"
    if path.suffix.lower() in SUFFIXES:
        return f"{path} is one image; give the folder that it is in"
    if kind in COMPRESSED:
        return f"{path} is compressed ({kind}): unpack it, and give what comes out"
    if kind:
        return f"{path} is a file of another kind ({kind}): {AS_FILES}"
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
