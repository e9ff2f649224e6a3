"""Read pickled files of strangers: tensors and plain data come in, code never runs.

torch's weights-only reader builds only what is on a list.  Here names are added to it of objects
that training frameworks leave in a checkpoint: each makes an inert one, without the framework.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch

from lddgan.checkpoint import read_bytes
from lddgan.errors import BadInput

UNREADABLE = (  # what torch and zipfile raise on bytes that are not a checkpoint
    *(pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, OverflowError, MemoryError),
)

INERT = {  # modules -> names
    "pytorch_lightning.callbacks lightning.pytorch.callbacks": "model_checkpoint.ModelCheckpoint "
    "early_stopping.EarlyStopping lr_monitor.LearningRateMonitor timer.Timer "
    "stochastic_weight_avg.StochasticWeightAveraging",
    "omegaconf": "base.Metadata base.ContainerMetadata base.SCMode dictconfig.DictConfig "
    "listconfig.ListConfig",
    "omegaconf.nodes": "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode PathNode "
    "StringNode",
    "typing": "Any Dict List Optional Tuple Union",
    "builtins": "bool dict float int list str tuple",
    "pathlib pathlib._local": "Path PosixPath PurePosixPath WindowsPath",
    "numpy": "dtype ndarray float32 float64 int64 bool_",
    "numpy.core.multiarray numpy._core.multiarray": "scalar _reconstruct",  # _core since numpy 2
}
DICTS = {
    "collections": "defaultdict",
    "pytorch_lightning.utilities.parsing lightning.pytorch.utilities.parsing": "AttributeDict",
    "lightning_fabric.utilities.data lightning.fabric.utilities.data": "AttributeDict",
}


class Inert:
    """Takes any arguments and any state, and does nothing with them."""

    def __new__(cls, *_arguments: object) -> Self:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class PlainDict(OrderedDict[Any, Any]):
    """Makes an ordinary ordered dictionary, whatever a pickled mapping was constructed from."""

    def __new__(cls, *_factory: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def allowed_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """(stand-in, full name) of everything that may be named in a file, besides torch's own list."""
    return [
        *((type(name.rpartition(".")[2], (Inert,), {}), name) for name in full_names(INERT)),
        *((PlainDict, name) for name in full_names(DICTS)),
        (argparse.Namespace, "argparse.Namespace"),
    ]


def full_names(table: Mapping[str, str]) -> list[str]:
    return [
        f"{module}.{name}"
        for modules, names in table.items()
        for module in modules.split()
        for name in names.split()
    ]


def read_pickle(path: Path) -> Any:
    """Read what torch.save wrote to `path`: tensors on the CPU, every foreign object inert.

    Raises BadInput with the cause if the file is missing, of another kind or damaged, or names
    anything that is not on the list.
    """
    check_kind(path)
    allowed = torch.serialization.safe_globals(allowed_globals())
    try:
        with path.open("rb") as file, allowed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and old storage classes
            return torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise BadInput(explain(path, error)) from error


def check_kind(path: Path) -> None:
    """Raise BadInput unless the first bytes of `path` may be those of a checkpoint."""
    head = read_bytes(path, 1 << 16)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    fault = ""
    if not head:
        fault = "is empty (0 bytes): download it again"
    elif text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        fault = "is a web page, not a checkpoint: download it again"
    elif text.startswith(b"version https://git-lfs"):
        fault = "is a Git LFS pointer, not the file: fetch it with `git lfs pull`"
    elif head[257:262] == b"ustar" or head.startswith(b"\x1f\x8b"):
        fault = "is a tar or gzip archive: unpack it (a torch file of before 2018: save it again)"
    if fault:
        raise BadInput(f"{path} {fault}")


def explain(path: Path, error: BaseException) -> str:
    """Say in a sentence why torch could not read `path`."""
    message = str(error)
    blocked = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", message)
    if blocked:
        name = printable(blocked[1])
        return f"{path} asks to run or build '{name}': no weights; refused, nothing was run"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except UNREADABLE:
        names = []
    if names and not any(name.endswith("data.pkl") for name in names):
        return f"{path} is a zip archive of {', '.join(names[:3])}: unpack it, give the file"
    # torch's text advises to run the pickle; the cause comes last, before advice to its developers
    cause = message.rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    cause = printable(cause).partition(". ")[0].rstrip(".")
    if isinstance(error, LookupError) or " " not in cause:  # a bare key or number
        cause = "its contents end or break off where torch expects more"
    size = f"{path.stat().st_size:,} bytes"
    return f"{path} ({size}) is damaged, cut or no checkpoint: {cause}; download or copy it again"


def printable(text: str) -> str:
    """Text out of a file, fit for a terminal and for one line."""
    return "".join(c if c.isprintable() else "?" for c in text[:160])
