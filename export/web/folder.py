"""A bundle -> a folder of static files: a page that samples in the visitor's browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import onnx

from export.bundle import ASSETS, Bundle, in_words
from export.graphs import graph_specs, precisions_of
from export.web.slices import split_by_slices
from lddgan.errors import BadInput
from lddgan.files import atomic_folder, refuse_used, sha256_of_file
from lddgan.names import Precision, Wanted

PAGE: Final = Path(__file__).parent / "page"  # index.html and what it loads
RUNTIME: Final = "ort"  # folder of ONNX Runtime's files
MODEL: Final = "model.json"
PRECISIONS: Final[Sequence[Precision]] = ("int8", "fp32")  # best first; WASM has no fp16

INSTALLED: Final = Path("node_modules/onnxruntime-web")  # where npm puts it
VERSION: Final = "1.30.0"  # of the npm package onnxruntime-web
FILES: Final = {  # what is taken of it, and its sha256
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",  # noqa: E501
    "ort.webgpu.bundle.min.mjs": "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",  # noqa: E501
}


def write_web(
    bundle: Bundle, folder: Path, runtime: Path, wanted: Wanted = "all"
) -> dict[str, int]:
    """Write the page of a bundle into `folder`; returns the bytes of each file.

    `runtime` is the npm package onnxruntime-web; graphs are taken in the precision `wanted`, or of
    several in int8 if the bundle has it, else in fp32.  A page that is there is replaced.  Raises
    BadInput for another package, graphs that no browser runs, or a folder of other files;
    LddganError if it cannot be written.
    """
    precision = precision_of(bundle, wanted)
    graphs = {f"{w}.onnx": bundle.graph(w, precision) for w in graph_specs(bundle.preset)}
    page, parts = [*PAGE.iterdir()], runtime_files(runtime)
    if bundle.is_shipped:
        page.append(ASSETS / "NOTICE")
    refuse_used(folder, RUNTIME, MODEL, *graphs, *(path.name for path in page))
    with atomic_folder(folder) as temporary:
        (temporary / RUNTIME).mkdir()
        for path in parts:
            shutil.copyfile(path, temporary / RUNTIME / path.name)
        for path in page:
            shutil.copyfile(path, temporary / path.name)
        for name, path in graphs.items():
            graph = onnx.load(path)
            split_by_slices(graph)
            onnx.save(graph, temporary / name)
        written = sorted(path for path in temporary.rglob("*") if path.is_file())
        sizes = {path.relative_to(temporary).as_posix(): path.stat().st_size for path in written}
        facts = model_facts(bundle, precision) | {"bytes": sizes}
        (temporary / MODEL).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return sizes


def precision_of(bundle: Bundle, wanted: Wanted) -> Precision:
    """The precision in which browsers run a bundle. Raises BadInput for one that they do not."""
    asked = precisions_of(wanted)
    if len(asked) != 1:
        return next((one for one in PRECISIONS if one in bundle.precisions), "fp32")
    if asked[0] not in PRECISIONS:
        raise BadInput(f"browsers run {in_words(PRECISIONS)}, not {asked[0]}")
    return asked[0]


def runtime_files(package: Path) -> list[Path]:
    """What the page needs of the npm package onnxruntime-web. Raises BadInput for another one."""
    paths = [package / "dist" / name for name in FILES]
    for path in paths:
        if not path.is_file():
            fault = "does not exist"
        elif sha256_of_file(path) != FILES[path.name]:
            fault = "is of another version"
        else:
            continue
        raise BadInput(
            f"{path} {fault}; `npm install onnxruntime-web@{VERSION} --ignore-scripts` makes "
            f"{INSTALLED}, which --runtime takes"
        )
    return paths


def model_facts(bundle: Bundle, precision: Precision) -> dict[str, Any]:
    """What the page knows of its model."""
    preset = bundle.preset
    return {
        "name": preset.name,
        "precision": precision,
        "random_weights": bundle.has_random_weights,
        "image_size": preset.image_size,
        "latent_shape": preset.latent_shape,
        "nz": preset.generator.nz,
        "steps": preset.steps,
    }
