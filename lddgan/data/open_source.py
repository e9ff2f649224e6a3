"""Opening the images at a path, of whatever kind."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from lddgan.data.cifar import FOLDERS, Cifar10, is_cifar10
from lddgan.data.listing import SUFFIXES, describe_passed_over
from lddgan.data.lmdb import FILE, Lmdb, is_lmdb
from lddgan.data.sources import Folder, Source, Zip
from lddgan.errors import BadInput
from lddgan.names import Convert


def open_source(path: Path, convert: Convert = "strict") -> Source:
    """Open the images at a path. Raises BadInput if there are none, or they are damaged.

    What is not RGB is converted when it is read, if `convert` is "rgb", and bad otherwise.
    """
    if not path.exists():
        raise BadInput(f"{path} does not exist")
    source = _folder(path, convert) if path.is_dir() else _file(path, convert)
    if not len(source):
        left = describe_passed_over(source.passed_over)
        raise BadInput(f"{path} holds no images ({', '.join(SUFFIXES)}){left}")
    return source


def _folder(path: Path, convert: Convert) -> Source:
    if (path / FILE).is_file():
        return Lmdb(path, convert)
    for folder in (path, *(path / name for name in FOLDERS)):
        if is_cifar10(folder):
            return Cifar10(folder)
    return Folder(path, convert)


def _file(path: Path, convert: Convert) -> Source:
    if not path.is_file():
        raise BadInput(f"{path} is neither a folder nor a file")
    if path.suffix == Path(FILE).suffix or is_lmdb(path):
        return Lmdb(path, convert)
    if path.suffix == ".zip" or zipfile.is_zipfile(path):
        return Zip(path, convert)
    if tarfile.is_tarfile(path):
        return Cifar10(path)
    raise BadInput(f"{path} is no folder of images, zip archive, LMDB or archive of CIFAR-10")
