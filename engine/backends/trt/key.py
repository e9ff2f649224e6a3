"""The key of a TensorRT plan: everything that makes it valid."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from engine.backends.trt.build import BuildOptions, Profile, flags_for
from engine.backends.trt.library import Library, LibraryName
from export.bundle import Bundle, graph_file
from export.graphs import graph_specs
from lddgan.files import sha256_of_bytes
from lddgan.frozen import Frozen
from lddgan.names import Precision

DIGEST_LETTERS: Final = 16  # of the key's sha256 in a folder's name; the whole key is compared

Which = Literal["generator", "decoder"]


class GpuIdentity(NamedTuple):
    """The GPU that a plan was made for."""

    name: str
    compute_capability: str  # "9.0"

    def __str__(self) -> str:
        return f"{self.name} ({self.compute_capability})"


class PlanKey(Frozen):
    """Everything that makes a plan valid."""

    engine: LibraryName
    version: str  # of the library
    gpu: GpuIdentity | None  # None: portable, as TensorRT-RTX builds them
    precision: Precision
    profile: Profile
    level: int
    flags: tuple[str, ...]
    graphs: dict[Which, str]  # sha256 of the ONNX files

    @property
    def digest(self) -> str:
        return sha256_of_bytes(self.model_dump_json().encode())

    @property
    def folder_name(self) -> str:
        profile = str(self.profile).replace(",", "-")
        words = (self.machine, self.precision, f"b{profile}", f"l{self.level}")
        return f"{'-'.join(words)}-{self.digest[:DIGEST_LETTERS]}"

    @property
    def machine(self) -> str:
        """Library and GPU as part of a file name."""
        return slug(f"{self.engine}-{self.version}-{self.gpu.name if self.gpu else 'portable'}")

    def differs_only_in_size(self, other: PlanKey) -> bool:
        """Whether two keys agree in everything except profile and level."""
        same = {"profile": self.profile, "level": self.level}
        return self == other.model_copy(update=same)


def slug(text: str) -> str:
    """Lower the case, and join letters, digits and dots by dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def plan_key(
    bundle: Bundle, library: Library, gpu: GpuIdentity | None, options: BuildOptions
) -> PlanKey:
    """The key of the plans that `options` describe. Raises BadInput if not exported."""
    if options.precision not in bundle.precisions:
        bundle.graph("generator", options.precision)  # raises, and says how to export it
    names = {which: graph_file(which, options.precision) for which in graph_specs(bundle.preset)}
    return PlanKey.model_validate(
        {
            "engine": library.name,
            "version": library.version,
            "gpu": gpu,
            **options.model_dump(),
            "flags": flags_for(library, options.precision).names,
            "graphs": {which: bundle.manifest.files[name].sha256 for which, name in names.items()},
        }
    )
