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
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, Self

import torch

from lddgan.checkpoint import read_bytes
from lddgan.errors import BadInput
from lddgan.memory import is_out_of_memory

UNREADABLE = (  # what torch and zipfile raise on bytes that are not a checkpoint
    *(pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, OverflowError, MemoryError),
)

FAULTS = {  # how a file begins that is no checkpoint -> what is wrong with it
    rb"\Z": "is empty (0 bytes): download it again",
    rb"[\xef\xbb\xbf\s]*<(?:!doctype|html|head|\?xml|!--)": (
        "is a web page, not a checkpoint: download it again"
    ),
    rb"version https://git-lfs": "is a Git LFS pointer, not the file: fetch it with `git lfs pull`",
    rb"\x1f\x8b|.{257}ustar": (
        "is a tar or gzip archive: unpack it (a torch file of before 2018: save it again)"
    ),
}
FOREIGN = {  # modules -> names
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
    "collections": "defaultdict",
    "pytorch_lightning.utilities.parsing lightning.pytorch.utilities.parsing": "AttributeDict",
    "lightning_fabric.utilities.data lightning.fabric.utilities.data": "AttributeDict",
}
DICTS = ("defaultdict", "AttributeDict")  # of these names


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
    allowed: list[Any] = [(argparse.Namespace, "argparse.Namespace")]
    for modules, names in FOREIGN.items():
        for module, name in product(modules.split(), names.split()):
            stand_in = PlainDict if name in DICTS else type(name, (Inert,), {})
            allowed.append((stand_in, f"{module}.{name}"))
    return allowed


def read_pickle(path: Path) -> Any:
    """Read what torch.save wrote to `path`: tensors on the CPU, every foreign object inert.

    Raises BadInput with the cause if the file is missing, of another kind or damaged, or names
    anything that is not on the list.
    """
    head = read_bytes(path, 1 << 16)
    for begins, fault in FAULTS.items():
        if re.match(begins, head, re.IGNORECASE | re.DOTALL):
            raise BadInput(f"{path} {fault}")
    allowed = torch.serialization.safe_globals(allowed_globals())
    try:
        with path.open("rb") as file, allowed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and old storage classes
            return torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise BadInput(explain(path, error)) from error


def explain(path: Path, error: BaseException) -> str:
    """Say in a sentence why torch could not read `path`."""
    message, size = str(error), f"{path.stat().st_size:,} bytes"
    blocked = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", message)
    if blocked:
        name = blocked[1][:160]
        return f"{path} asks to run or build '{name}': no weights; refused, nothing was run"
    if is_out_of_memory(error):
        return f"{path} ({size}) needs more memory than there is, or is damaged"
    names: list[str] = []
    with suppress(*UNREADABLE), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if names and not any(name.endswith("data.pkl") for name in names):
        return f"{path} is a zip archive of {', '.join(names[:3])}: unpack it, give the file"
    # torch's text advises to run the pickle; the cause comes last, before advice to its developers
    cause = message.rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    cause = cause[:160].partition(". ")[0].rstrip(".")
    if isinstance(error, LookupError) or " " not in cause:  # a bare key or number
        cause = "its contents end or break off where torch expects more"
    return f"{path} ({size}) is damaged, cut or no checkpoint: {cause}; download or copy it again"
