"""A bundle: the folder that an engine runs. Needs no torch and no onnx to be read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

import lddgan
from export.agreement import Differences
from export.graphs import GraphSpec, graph_specs
from lddgan.errors import BadInput, command, why_invalid
from lddgan.files import atomic_folder, sha256_of_file
from lddgan.frozen import Frozen
from lddgan.names import PRECISIONS, Precision
from lddgan.preset import Preset
from lddgan.presets import get_preset

SCHEMA: Final = 1
MANIFEST = "manifest.json"
CHECKPOINT = "model.safetensors"
ENGINES = "engines"  # built later; the manifest does not list it
EXPORTS = Path("exports")
ASSETS = Path(lddgan.__file__).parent / "assets"
EMOJI, DIGITS = ASSETS / "emoji", ASSETS / "digits"
SHIPPED = {"emoji": EMOJI, "digits": DIGITS}  # with the package


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # sha256
FileName = Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)+$")]  # in the bundle's folder


class FileEntry(Frozen):
    """One file of the bundle."""

    sha256: Digest
    bytes: int


class Agreement(Differences):
    """How ONNX Runtime agrees with PyTorch fp32, over all batches together."""

    batches: tuple[int, ...]
    # One image through the torch modules in the graph's own dtypes; None for fp32.
    fp16_largest: float | None = None  # magnitude of any fp16 tensor
    fp16_psnr: float | None = None  # dB against fp32; for VQ, of the decoder alone

    def summary(self) -> str:
        """What was measured, as one line of text."""
        flips = f", {self.code_flips:.3%} of the VQ codes differ" if self.code_flips else ""
        highest = self.fp16_largest
        largest = "" if highest is None else f", largest fp16 value {highest:,.0f}"
        kept = f"; {self.why_fp32}" if self.why_fp32 else ""
        return (
            f"agrees with PyTorch at batch {', '.join(map(str, self.batches))}: generator within "
            f"{self.generator_error:.1e}, x_0 within {self.chain_error:.1e} of the range, images "
            f"within {self.chain_levels} grey levels, PSNR {self.chain_psnr:.1f} dB{flips}{largest}"
            f"{kept}"
        )


class Manifest(Frozen):
    """The content of `manifest.json`, checked when a bundle is opened."""

    schema_version: Literal[1]
    preset: Preset
    provenance: dict[str, Any]
    files: dict[FileName, FileEntry]
    graphs: dict[str, GraphSpec]
    exporter: dict[str, str]  # package -> version
    # Names in export/rewrites; missing in the oldest bundles.
    rewrites: dict[Precision, tuple[str, ...]] = Field(default_factory=dict)
    verification: dict[Precision, Agreement]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `file` checks each file against the manifest before it gives its path."""

    folder: Path
    manifest: Manifest

    @property
    def preset(self) -> Preset:
        return self.manifest.preset

    @property
    def precisions(self) -> tuple[Precision, ...]:
        return tuple(self.manifest.verification)

    @property
    def has_random_weights(self) -> bool:
        return bool(self.manifest.provenance.get("random_weights"))

    @property
    def is_shipped(self) -> bool:
        return self.folder.resolve().parent == ASSETS.resolve()

    def file(self, name: str) -> Path:
        """Check a listed file's size and sha256; returns its path. Raises BadInput on a fault."""
        path, entry = self.folder / name, self.manifest.files.get(name)
        if entry is None:
            listed = ", ".join(self.manifest.files)
            raise BadInput(f"the bundle {self.folder} has no {name}; it has {listed}")
        if not path.is_file():
            fault = "is missing"
        elif (size := path.stat().st_size) != entry.bytes:
            fault = f"has {size:,} bytes, its manifest says {entry.bytes:,}"
        elif sha256_of_file(path) != entry.sha256:
            fault = "is not the file its manifest lists (sha256 differs)"
        else:
            return path
        raise BadInput(f"{path} {fault}; export the bundle again")

    def graph(self, which: str, precision: Precision) -> Path:
        """Path of `generator` or `decoder` in a precision. Raises BadInput if not exported."""
        if precision not in self.precisions:
            wanted = "all" if "int8" in (precision, *self.precisions) else "both"
            given = ["--checkpoint", self.folder / CHECKPOINT, "--precision", wanted]
            given += [] if self.is_shipped else ["--out", self.folder]
            raise BadInput(
                f"the bundle {self.folder} holds {in_words(self.precisions)}, not {precision}; "
                f"run {command('export', *given)}"
            )
        return self.file(graph_file(which, precision))


def in_words(held: Sequence[Precision]) -> str:
    """The precisions of a bundle as text: "fp32 and fp16"."""
    return " and ".join(held) or "a checkpoint without graphs"


def graph_file(which: str, precision: Precision) -> str:
    """File name of a graph: generator.fp32.onnx"""
    return f"{which}.{precision}.onnx"


OF_A_BUNDLE = {MANIFEST, CHECKPOINT, ENGINES} | {
    graph_file(which, precision) for which in ("generator", "decoder") for precision in PRECISIONS
}


def open_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Open a bundle. Raises BadInput if its manifest is missing, too new or was edited by hand."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise BadInput(f"there is no bundle at {folder} (no {MANIFEST}); `lddgan export` makes one")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise BadInput(
            f"{path} is not a manifest of schema {SCHEMA}: {why_invalid(error, 'the file')}; "
            "export the bundle again with this version"
        ) from error
    if manifest.graphs != graph_specs(manifest.preset):
        raise BadInput(f"{path}: the tensors of its graphs do not fit its preset; export it again")
    return Bundle(folder, manifest)


def find_bundle(dataset: str | None) -> Path:
    """The folder of a data set's bundle: a shipped one, else `exports/<dataset>`.

    None is the newest under `exports/`, or the shipped emoji.  Raises BadInput if there is none.
    """
    if dataset in SHIPPED:
        return SHIPPED[dataset]
    if dataset is not None:
        folder = EXPORTS / get_preset(dataset).name
        if not (folder / MANIFEST).is_file():
            how = command("export", "--dataset", dataset)
            raise BadInput(f"no bundle at {folder}; run {how} first")
        return folder
    manifests = sorted(EXPORTS.glob(f"[!.]*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    return manifests[-1].parent if manifests else EMOJI


def store_folder(bundle: Bundle) -> Path:
    """Folder for what is built or tuned: in the bundle; of a shipped one, in the cache."""
    if not bundle.is_shipped:
        return bundle.folder / ENGINES
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "lddgan" / bundle.folder.name / ENGINES


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """Give a temporary folder, which becomes `folder` if the body succeeds.

    It replaces a bundle that is there already. Raises BadInput if anything else is.
    """
    refuse_foreign(folder)
    with atomic_folder(folder) as temporary:
        yield temporary
        refuse_foreign(folder)  # that came meanwhile


def refuse_foreign(folder: Path) -> None:
    """Raise BadInput if a folder holds anything but a bundle."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} exists and is not a folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = sorted(names - OF_A_BUNDLE if MANIFEST in names else names)
    if foreign:
        raise BadInput(f"{folder} holds other files ({foreign[0]}); choose another --out")


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Digest and size of every file in a folder."""
    return {
        path.name: FileEntry(sha256=sha256_of_file(path), bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
