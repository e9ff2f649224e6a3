"""Opening the images at a path, of whatever kind."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

from lddgan.data.cifar import BATCHES, BINARY, FOLDERS, Cifar10, is_cifar10
from lddgan.data.foreign import why_empty, why_not_read
from lddgan.data.listing import SUFFIXES, describe_passed_over
from lddgan.data.lmdb import FILE, Lmdb, is_lmdb
from lddgan.data.sources import Folder, Source, Zip, open_zip, opened
from lddgan.data.tar import Tar, is_tar, members_of
from lddgan.errors import BadInput
from lddgan.names import Convert


def open_source(path: Path, convert: Convert = "strict", lmdb_size: int | None = None) -> Source:
    """Open the images at a path. Raises BadInput if there are none, or they are damaged.

    What is not RGB is converted when it is read, if `convert` is "rgb", and bad otherwise; of an
    LMDB with several sizes of each image, those of `lmdb_size` are taken.
    """
    if not path.exists():
        raise BadInput(f"{path} does not exist")
    open_it = _folder if path.is_dir() else _file
    source = open_it(path, convert, lmdb_size)
    if not len(source):
        nothing = f"holds no images ({', '.join(SUFFIXES)})"
        nothing += describe_passed_over(source.passed_over)
        raise BadInput(f"{path} {why_empty(path, _names(source)) or nothing}")
    if lmdb_size is not None and not isinstance(source, Lmdb):
        raise BadInput(f"{path} is no LMDB; leave out --lmdb-size")
    return source


def _folder(path: Path, convert: Convert, lmdb_size: int | None) -> Source:
    if (path / FILE).is_file():
        return Lmdb(path, convert, lmdb_size)
    for folder in (path, *(path / name for name in FOLDERS)):
        if is_cifar10(folder):
            return Cifar10(folder)
    return Folder(path, convert)


def _file(path: Path, convert: Convert, lmdb_size: int | None) -> Source:
    if not path.is_file():
        raise BadInput(f"{path} is neither a folder nor a file")
    if path.suffix == Path(FILE).suffix or is_lmdb(path):
        return Lmdb(path, convert, lmdb_size)
    if is_tar(path):
        members, passed_over = members_of(path)
        is_cifar = any(Path(name).name.removesuffix(BINARY) in BATCHES for name in members)
        return Cifar10(path) if is_cifar else Tar(path, members, passed_over, convert)
    if path.suffix == ".zip" or zipfile.is_zipfile(path):
        return Zip(path, convert)
    if tarfile.is_tarfile(path):  # a compressed one
        return Cifar10(path)
    raise BadInput(why_not_read(path))


def _names(source: Source) -> list[str]:
    """The paths of all files in a folder or archive."""
    path = source.path
    if isinstance(source, Zip):
        return opened(path, open_zip).namelist()
    if isinstance(source, Tar):
        return list(members_of(path)[0])
    files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return [file.relative_to(path).as_posix() for file in files]
