"""A bundle -> models of a repository of NVIDIA's Triton Inference Server."""

from __future__ import annotations

import shutil
from pathlib import Path
from string import Template
from typing import Final

from export.bundle import ASSETS, MANIFEST, Bundle, graph_file
from export.graphs import BATCH, TensorSpec, graph_specs, precisions_of
from lddgan.errors import BadInput
from lddgan.files import atomic_folder, refuse_used
from lddgan.names import Precision, Wanted

HERE: Final = Path(__file__).parent
CONFIG, NOTICE, VERSION = "config.pbtxt", "NOTICE", "1"  # in a model's folder
PROGRAM, BUNDLE, GRAPH = "model.py", "bundle", "model.onnx"  # in that of its version
OURS: Final = "lddgan export --triton"  # is in the configurations of our models
TYPES: Final = {"float32": "TYPE_FP32", "int32": "TYPE_INT32", "uint8": "TYPE_UINT8"}
PROFILE: Final = {"min": 1, "opt": 8, "max": 64}  # batches of a TensorRT plan


def write_repository(
    bundle: Bundle, folder: Path, wanted: Wanted = "all", *, graphs: bool = False
) -> dict[str, int]:
    """Write a bundle into the model repository `folder`; returns the bytes of each model.

    The model has the preset's name; with `graphs` there are models NAME_generator and NAME_decoder
    too.  In one precision if `wanted` names one; else the engine chooses, and the graphs are fp32.
    Models of ours with these names are replaced, others stay.  Raises BadInput for a precision that
    the bundle lacks, or a folder of other files; LddganError if it cannot be written.
    """
    asked = precisions_of(wanted)
    precision = asked[0] if len(asked) == 1 else None
    name, specs = bundle.preset.name, graph_specs(bundle.preset)
    of_graphs = {f"{name}_{which}": which for which in specs} if graphs else {}
    bare = precision or "fp32"
    for which in specs if precision or graphs else ():
        bundle.graph(which, bare)
    refuse_foreign(folder, name, *of_graphs)
    with atomic_folder(folder / name) as temporary:
        write_model(bundle, temporary, precision)
    for model, which in of_graphs.items():
        with atomic_folder(folder / model) as temporary:
            write_graph(bundle, temporary, which, bare)
    return {model: bytes_in(folder / model) for model in (name, *of_graphs)}


def refuse_foreign(folder: Path, *models: str) -> None:
    """Raise BadInput if `folder` holds no models alone, or another's under the names of ours."""
    there = [path.parent for path in folder.glob(f"*/{CONFIG}")]
    refuse_used(folder, *models, *(path.name for path in there))
    for path in (folder / model for model in models):
        refuse_used(path, CONFIG, NOTICE, VERSION)
        refuse_used(path / VERSION, PROGRAM, BUNDLE, GRAPH)
        if path in there and OURS not in (path / CONFIG).read_text("utf-8", "replace"):
            raise BadInput(f"{path} is a model that `{OURS}` did not write; choose another folder")


def write_model(bundle: Bundle, folder: Path, precision: Precision | None) -> None:
    """The model that makes images, for Triton's Python backend."""
    _, height, width = bundle.preset.image_shape
    text = filled(CONFIG, height=height, width=width, precision=precision or "auto")
    (folder / CONFIG).write_text(text, encoding="utf-8")
    (folder / VERSION / BUNDLE).mkdir(parents=True)
    shutil.copyfile(HERE / PROGRAM, folder / VERSION / PROGRAM)
    if bundle.is_shipped:
        shutil.copyfile(ASSETS / NOTICE, folder / NOTICE)
    others = [one for one in bundle.precisions if precision not in (None, one)]
    left_out = {graph_file(which, one) for which in graph_specs(bundle.preset) for one in others}
    shutil.copyfile(bundle.folder / MANIFEST, folder / VERSION / BUNDLE / MANIFEST)
    for name in bundle.manifest.files.keys() - left_out:
        shutil.copyfile(bundle.file(name), folder / VERSION / BUNDLE / name)


def write_graph(bundle: Bundle, folder: Path, which: str, precision: Precision) -> None:
    """A bare graph, for Triton's ONNX Runtime backend."""
    spec = graph_specs(bundle.preset)[which]
    text = filled(
        "graph.pbtxt",
        which=which,
        precision=precision,
        inputs=",\n".join(map(tensor, spec.inputs)),
        outputs=",\n".join(map(tensor, spec.outputs)),
        profile=" ".join(
            f"--{end}Shapes={','.join(shape(one, batch) for one in spec.inputs if is_batch(one))}"
            for end, batch in PROFILE.items()
        ),
    )
    (folder / CONFIG).write_text(text, encoding="utf-8")
    (folder / VERSION).mkdir()
    shutil.copyfile(bundle.graph(which, precision), folder / VERSION / GRAPH)


def filled(template: str, **values: object) -> str:
    return Template((HERE / template).read_text("utf-8")).substitute(values)


def tensor(spec: TensorSpec) -> str:
    """An input or output of a configuration."""
    dims = ", ".join("-1" if size == BATCH else str(size) for size in spec.shape)
    return f'  {{ name: "{spec.name}" data_type: {TYPES[spec.dtype]} dims: [ {dims} ] }}'


def is_batch(spec: TensorSpec) -> bool:
    return BATCH in spec.shape


def shape(spec: TensorSpec, batch: int) -> str:
    """A shape as trtexec takes it: x:8x4x8x8"""
    return f"{spec.name}:{'x'.join(str(batch if size == BATCH else size) for size in spec.shape)}"


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
