"""Reading pickled files of strangers: tensors and plain data come in, code never runs.

torch's weights-only reader builds nothing but what is on a list.  To its own list come the names
below: what training frameworks leave in a checkpoint beside the weights.  Each stands for an inert
object that keeps what it was given, so the frameworks themselves are not needed.
"""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch

from lddgan.errors import BadInput

HEAD = 1 << 16  # bytes that tell what a file is
TORCH_OWN = ("torch.", "collections.", "_codecs.encode", "builtins.set", "builtins.bytearray")
SHOWN = 160  # characters of a name or message that is not ours
UNREADABLE = (  # what torch, zipfile and pickletools raise on bytes that are not a checkpoint
    *(pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, OverflowError, MemoryError),
)

LIGHTNING = (
    "callbacks.model_checkpoint.ModelCheckpoint",
    "callbacks.early_stopping.EarlyStopping",
    "callbacks.lr_monitor.LearningRateMonitor",
    "callbacks.timer.Timer",
    "callbacks.stochastic_weight_avg.StochasticWeightAveraging",
)
INERT_NAMES = (
    *(f"pytorch_lightning.{name}" for name in LIGHTNING),
    *(f"lightning.pytorch.{name}" for name in LIGHTNING),
    *(f"omegaconf.base.{name}" for name in ("Metadata", "ContainerMetadata", "SCMode")),
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String")
    ),
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath")),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "float32", "float64", "int64", "bool_")),
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")  # before and since numpy 2
        for name in ("scalar", "_reconstruct")
    ),
)
DICT_NAMES = (
    "collections.defaultdict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)


class Inert:
    """Takes any arguments and any state, and does nothing with them."""

    arguments: tuple[object, ...]
    state: object

    def __new__(cls, *arguments: object) -> Self:
        self = super().__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __setstate__(self, state: object) -> None:
        self.state = state


class PlainDict(OrderedDict[Any, Any]):
    """Makes an ordinary ordered dictionary, whatever a pickled mapping was constructed from."""

    def __new__(cls, *_factory: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def allowed_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """(stand-in, full name) of everything that may be named in a file, besides torch's own list."""
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (type(name.rpartition(".")[2], (Inert,), {}), name) for name in INERT_NAMES
    ]
    stand_ins += [(PlainDict, name) for name in DICT_NAMES]
    return [*stand_ins, (argparse.Namespace, "argparse.Namespace")]


def read_pickle(path: Path) -> Any:
    """What torch.save wrote to `path`, tensors on the CPU, everything foreign inert.

    Raises BadInput with the cause if the file is missing, of another kind, damaged or asks for
    anything beyond the list.
    """
    check_kind(path)
    try:
        with (
            path.open("rb") as file,
            torch.serialization.safe_globals(allowed_globals()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # about pickle protocols and old storage classes
            return torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise BadInput(explain(path, error)) from error


def check_kind(path: Path) -> None:
    """Raise BadInput unless the first bytes of `path` may be those of a checkpoint."""
    if not path.is_file():
        raise BadInput(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise BadInput(f"{path} is empty (0 bytes): download it again")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        raise BadInput(f"{path} is a web page, not a checkpoint: download it again")
    if text.startswith(b"version https://git-lfs"):
        raise BadInput(f"{path} is a Git LFS pointer, not the file: fetch it with `git lfs pull`")
    if is_safetensors(head):
        ours = b'"lddgan-checkpoint' in head
        raise BadInput(
            f"{path} is an lddgan checkpoint already: use it as it is, it needs no import"
            if ours
            else f"{path} is a safetensors file; import reads published .pth and .ckpt files"
        )
    if head[257:262] == b"ustar" or head.startswith(b"\x1f\x8b"):
        raise BadInput(
            f"{path} is a tar or gzip archive: unpack it; if it is a torch file of before 2018, "
            "load it with that torch and save it again"
        )


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins with the length of a JSON header and the header's brace."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100 << 20


def explain(path: Path, error: BaseException) -> str:
    """Why torch could not read `path`, in a sentence for the user."""
    message = str(error)
    blocked = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", message)
    if blocked:
        return refusal(path, blocked[1])
    names = names_in_zip(path)
    if names and not any(name.endswith("data.pkl") for name in names):
        return f"{path} is a zip archive of {', '.join(names[:3])}: unpack it, give the file"
    if any(name.endswith("constants.pkl") for name in names):
        return f"{path} is a TorchScript program, not a checkpoint of weights"
    named = foreign_global(path)
    if named:
        return refusal(path, named)
    cause = message.strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):  # torch's text advises to run the pickle
        cause = message.rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    size = path.stat().st_size
    cause = printable(cause) or "unreadable"
    return f"{path} ({size:,} bytes) is damaged, cut or no checkpoint: {cause}"


def refusal(path: Path, name: str) -> str:
    name = printable(name)
    return f"{path} asks to run or build '{name}', which is not weights: refused, nothing was run"


def printable(text: str) -> str:
    """Text out of a file, fit for a terminal and for one line."""
    return "".join(c if c.isprintable() else "?" for c in text[:SHOWN])


def foreign_global(path: Path) -> str:
    """The first global in a bare pickle that is on no list, "" if there is none.

    The pickle is parsed, nothing is built.  Covers the protocols that torch's reader does not; in
    the files of torch.save, zip or older, its message names the global.
    """
    known = {*INERT_NAMES, *DICT_NAMES, "argparse.Namespace"}
    try:
        with path.open("rb") as file:
            for name in globals_named(file):
                if name not in known and not name.startswith(TORCH_OWN):
                    return name
    except UNREADABLE:
        pass  # cut, or no pickle at all
    return ""


def names_in_zip(path: Path) -> list[str]:
    """What a zip archive holds; nothing if it is damaged or another kind of file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except UNREADABLE:
        return []


def globals_named(file: BinaryIO) -> Iterator[str]:
    """The full name of every global in one pickle, in order."""
    strings: list[str] = []  # as pushed; STACK_GLOBAL takes the last two
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            name = str(argument).replace(" ", ".")
            yield re.sub(r"^__builtin__\.", "builtins.", name)  # as protocol 2 spells it
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else ""
        elif opcode.name in ("BINGET", "LONG_BINGET") and argument is not None:
            strings.append(memo.get(int(argument), ""))
        elif isinstance(argument, str):
            strings.append(argument)
