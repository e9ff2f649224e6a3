"""Opening the images at a path, of whatever kind."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from lddgan.data.cifar import FOLDERS, Cifar10, is_cifar10
from lddgan.data.lmdb import FILE, Lmdb, is_lmdb
from lddgan.data.sources import SUFFIXES, Folder, Source, Zip
from lddgan.errors import BadInput


def open_source(path: Path) -> Source:
    """Open the images at a path. Raises BadInput if there are none, or they are damaged."""
    if not path.exists():
        raise BadInput(f"{path} does not exist")
    source = _folder(path) if path.is_dir() else _file(path)
    if not len(source):
        raise BadInput(f"{path} holds no images ({', '.join(SUFFIXES)})")
    return source


def _folder(path: Path) -> Source:
    if (path / FILE).is_file():
        return Lmdb(path)
    for folder in (path, *(path / name for name in FOLDERS)):
        if is_cifar10(folder):
            return Cifar10(folder)
    return Folder(path)


def _file(path: Path) -> Source:
    if path.suffix == Path(FILE).suffix or is_lmdb(path):
        return Lmdb(path)
    if path.suffix == ".zip" or zipfile.is_zipfile(path):
        return Zip(path)
    if tarfile.is_tarfile(path):
        return Cifar10(path)
    raise BadInput(f"{path} is no folder of images, zip archive, LMDB or archive of CIFAR-10")
