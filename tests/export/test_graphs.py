"""The ONNX files: their tensors, their dtypes, their sizes at the largest batch, nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from export.bundle import DIGITS, open_bundle
from export.exporter import graph_modules
from export.fp16 import to_half
from export.graphs import MAX_BATCH, GraphSpec, TensorSpec, graph_specs
from export.rewrites import TAKES
from export.to_onnx import export_graph
from lddgan.checkpoint import Model
from tests.bundles import EXPORT_SECONDS, exported_by_command

LARGEST = 2**31 - 1  # elements of one tensor
SLICE = 512  # codes that the search looks at together
COMPUTES = ("Conv", "ConvTranspose", "Gemm", "MatMul")

F32, I32, U8 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT8
TINY_TENSORS = {  # DESIGN.md with the sizes of conftest.TINY
    "generator": (
        [
            ("x", ["B", 4, 8, 8], F32),
            ("t", [1], I32),
            ("z", ["B", 10], F32),
            ("noise", ["B", 4, 8, 8], F32),
        ],
        [("x_next", ["B", 4, 8, 8], F32)],
    ),
    "decoder": ([("x_0", ["B", 4, 8, 8], F32)], [("image", ["B", 32, 32, 3], U8)]),
}
ALL_FILES = [f"{which}.{precision}" for which in TINY_TENSORS for precision in ("fp32", "fp16")]


def listed(values) -> list[tuple]:
    return [
        (
            value.name,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            value.type.tensor_type.elem_type,
        )
        for value in values
    ]


def inferred(path: Path, batch: int) -> tuple[onnx.GraphProto, dict[str, onnx.TypeProto.Tensor]]:
    """The graph at one batch size, and the type of each of its tensors, weights included."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim[0].dim_param == "B":
            value.type.tensor_type.shape.dim[0].dim_value = batch
    model = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    graph = model.graph
    types = {
        value.name: value.type.tensor_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    for weight in graph.initializer:
        types[weight.name] = onnx.helper.make_tensor_type_proto(
            weight.data_type, weight.dims
        ).tensor_type
    missing = [name for node in graph.node for name in node.output if name not in types]
    assert not missing, missing
    return graph, types


def elements(tensor: onnx.TypeProto.Tensor) -> int:
    sizes = [dim.dim_value for dim in tensor.shape.dim]
    assert all(dim.HasField("dim_value") for dim in tensor.shape.dim), tensor
    return math.prod(sizes)


def before(graph: onnx.GraphProto, name: str, stop=lambda node: False) -> list[onnx.NodeProto]:
    """Nodes that `name` depends on, not looking behind those where `stop` is true."""
    maker = {output: node for node in graph.node for output in node.output}
    found: dict[str, onnx.NodeProto] = {}
    names = [name]
    while names:
        node = maker.get(names.pop())
        if node is not None and node.output[0] not in found:
            found[node.output[0]] = node
            names += [] if stop(node) else list(node.input)
    return list(found.values())


def search(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of the VQ search: all before the index that picks the codes."""
    (lookup,) = [n for n in graph.node if n.op_type == "Gather" and "table" in n.input[0]]
    nodes = before(graph, lookup.input[1])
    assert sum(node.op_type == "ArgMin" for node in nodes) >= 2, "the search has several slices"
    return nodes


def floats(nodes: list[onnx.NodeProto], types: dict) -> set[int]:
    """Floating-point dtypes that enter these nodes."""
    return {
        types[name].elem_type
        for node in nodes
        for name in node.input
        if name and types[name].elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    }


@pytest.fixture(scope="module")
def vq_half_decoder(tiny_vq_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vq_half") / "decoder.fp16.onnx"
    decoder = to_half(graph_modules(tiny_vq_model, TAKES["fp16"])["decoder"])
    export_graph(decoder, graph_specs(tiny_vq_model.preset)["decoder"], path, MAX_BATCH)
    return path


# ---- names, shapes, dtypes ----


@pytest.mark.parametrize("name", ALL_FILES)
def test_file_has_the_tensors_of_the_design(tiny_bundle: Path, name: str) -> None:
    graph = onnx.load(tiny_bundle / f"{name}.onnx").graph
    inputs, outputs = TINY_TENSORS[name.split(".")[0]]
    assert listed(graph.input) == inputs
    assert listed(graph.output) == outputs


def test_manifest_has_the_tensors_of_the_design(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert bundle.manifest.graphs == graph_specs(bundle.preset)
    dtypes = {"float32": F32, "int32": I32, "uint8": U8}
    for which, (inputs, outputs) in TINY_TENSORS.items():
        spec = bundle.manifest.graphs[which]
        for tensors, expected in ((spec.inputs, inputs), (spec.outputs, outputs)):
            assert [(t.name, list(t.shape), dtypes[t.dtype]) for t in tensors] == expected


@pytest.mark.parametrize("name", ALL_FILES)
def test_file_holds_its_weights_and_no_notes_of_the_exporter(tiny_bundle: Path, name: str) -> None:
    path = tiny_bundle / f"{name}.onnx"
    model = onnx.load(path, load_external_data=False)
    assert not model.metadata_props and not model.graph.metadata_props and not model.functions
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert {w.data_location for w in model.graph.initializer} == {TensorProto.DEFAULT}
    data = path.read_bytes()
    for trace in (str(Path(__file__).parents[2]), "site-packages", ".py", "stack_trace", "File "):
        assert trace.encode() not in data, trace


def test_bundle_holds_no_other_files(tiny_bundle: Path) -> None:
    expected = {"manifest.json", "model.safetensors", *(f"{name}.onnx" for name in ALL_FILES)}
    assert {path.name for path in tiny_bundle.iterdir()} == expected


# ---- fp16 ----


@pytest.mark.parametrize("which", ["generator", "decoder"])
def test_fp16_weights_are_stored_in_fp16(tiny_bundle: Path, which: str) -> None:
    path = tiny_bundle / f"{which}.fp16.onnx"
    graph, types = inferred(path, 1)
    weights = {w.name: w for w in graph.initializer}
    computing = [node for node in graph.node if node.op_type in COMPUTES and not is_grouped(node)]
    used = [name for node in computing for name in node.input]
    assert {weights[name].data_type for name in used if name in weights} == {TensorProto.FLOAT16}
    convolutions = [node for node in computing if node.op_type == "Conv"]
    assert floats(convolutions, types) == {TensorProto.FLOAT16}
    assert path.stat().st_size < 0.6 * (tiny_bundle / f"{which}.fp32.onnx").stat().st_size


@pytest.mark.parametrize("which", ["generator", "decoder"])
def test_fp16_keeps_norms_and_softmax_in_fp32(tiny_bundle: Path, which: str) -> None:
    graph, types = inferred(tiny_bundle / f"{which}.fp16.onnx", 1)
    for kind in ("InstanceNormalization", "Softmax"):
        nodes = [node for node in graph.node if node.op_type == kind]
        assert nodes, kind
        assert floats(nodes, types) == {F32}, kind


def is_grouped(node: onnx.NodeProto) -> bool:
    return any(a.name == "group" and a.i > 1 for a in node.attribute)


def test_fp16_keeps_the_fir_filters_in_fp32(tiny_bundle: Path) -> None:
    graph, types = inferred(tiny_bundle / "generator.fp16.onnx", 1)
    filters = [node for node in graph.node if is_grouped(node)]
    assert {node.op_type for node in filters} == {"Conv", "ConvTranspose"}
    assert floats(filters, types) == {F32}


def test_fp16_keeps_the_posterior_in_fp32(tiny_bundle: Path) -> None:
    graph, types = inferred(tiny_bundle / "generator.fp16.onnx", 1)

    def leaves_the_network(node: onnx.NodeProto) -> bool:
        return node.op_type == "Cast" and types[node.input[0]].elem_type == TensorProto.FLOAT16

    nodes = before(graph, "x_next", leaves_the_network)
    casts = [node for node in nodes if leaves_the_network(node)]
    assert len(casts) == 1, "x_0 alone comes from fp16"
    assert floats([node for node in nodes if node not in casts], types) == {F32}
    assert sum(node.op_type == "Gather" for node in nodes) == 3  # coefficients by t
    read = {name for node in nodes for name in node.input}
    assert {"x", "noise", "t"} <= read


def test_fp16_keeps_the_vq_search_in_fp32(vq_half_decoder: Path) -> None:
    graph, types = inferred(vq_half_decoder, 1)
    assert floats(search(graph), types) == {F32}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert floats(convolutions, types) == {TensorProto.FLOAT16}


# ---- what older parsers read ----


def refused_by_older_parsers(graph: onnx.GraphProto) -> list[str]:
    """Nodes that mean something else, or nothing, to a parser of opset 17."""
    return [
        f"{node.op_type} {node.name}"
        for node in graph.node
        if node.op_type in CHANGED and not SAME_AS_BEFORE.get(node.op_type, never)(node)
    ]


def never(node: onnx.NodeProto) -> bool:
    return False


CHANGED = {  # operators whose definition opset 18 changed or added
    schema.name
    for schema in onnx.defs.get_all_schemas_with_history()
    if schema.domain == "" and schema.since_version == 18
}
SAME_AS_BEFORE = {
    # Sizes as an input are the form of opset 13; 18 added the attribute num_outputs.
    "Split": lambda node: len(node.input) == 2 and {a.name for a in node.attribute} <= {"axis"},
}


def test_operators_that_opset_18_changed_are_known() -> None:
    assert {"ReduceMean", "ReduceMin", "ReduceMax", "Split", "Pad", "Resize"} < CHANGED
    assert not {"ReduceSum", "ArgMin", "GatherElements", "InstanceNormalization"} & CHANGED


@pytest.mark.parametrize("name", ALL_FILES)
def test_older_parsers_read_the_same_kl_graphs(tiny_bundle: Path, name: str) -> None:
    check_older_parsers_read(tiny_bundle / f"{name}.onnx")


@pytest.mark.parametrize("which", TINY_TENSORS)
def test_older_parsers_read_the_same_vq_graphs(tiny_vq_bundle: Path, which: str) -> None:
    check_older_parsers_read(tiny_vq_bundle / f"{which}.fp32.onnx")


def test_older_parsers_read_the_same_fp16_vq_decoder(vq_half_decoder: Path) -> None:
    check_older_parsers_read(vq_half_decoder)


def test_older_parsers_read_the_same_shipped_graphs() -> None:
    graphs = sorted(DIGITS.glob("*.onnx"))
    assert [path.name for path in graphs] == ["decoder.fp32.onnx", "generator.fp32.onnx"]
    for path in graphs:
        check_older_parsers_read(path)


@pytest.mark.full
@pytest.mark.timeout(EXPORT_SECONDS)
@pytest.mark.parametrize("which", TINY_TENSORS)
def test_older_parsers_read_the_same_cifar10_graphs(which: str) -> None:
    bundle = exported_by_command("cifar10") / "exports" / "cifar10"
    check_older_parsers_read(bundle / f"{which}.fp32.onnx")


def check_older_parsers_read(path: Path) -> None:
    model = onnx.load(path)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert refused_by_older_parsers(model.graph) == []
    onnx.checker.check_model(model, full_check=True)
    parts = [node for node in model.graph.node if node.op_type == "Shape" and is_part(node)]
    assert not parts, "a part of a shape is asked for, which was new in opset 15"


def is_part(node: onnx.NodeProto) -> bool:
    given = {a.name: a.i for a in node.attribute}
    return given.get("start", 0) != 0 or "end" in given


class Reduces(nn.Module):
    """What the networks must not do: reductions of opset 18, and a Split into so many parts."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x_0: torch.Tensor) -> torch.Tensor:
        if self.what == "Split":
            first, second = x_0.chunk(2, dim=1)
            return first * second
        if self.what == "ReduceMin":
            return x_0.amin(dim=1)
        return x_0.mean(dim=1)


@pytest.mark.parametrize("what", ["ReduceMean", "ReduceMin", "Split"])
def test_graph_that_older_parsers_misread_is_not_written(tmp_path: Path, what: str) -> None:
    latent = TensorSpec(name="x_0", shape=("B", 4, 8, 8), dtype="float32")
    out = latent.model_copy(update={"name": "y"})
    path = tmp_path / "misread.onnx"
    with pytest.raises(onnx.checker.ValidationError, match=what):
        export_graph(Reduces(what), GraphSpec(inputs=(latent,), outputs=(out,)), path, MAX_BATCH)
    assert not path.exists()


def test_pixel_norm_is_of_one_image(tiny_bundle: Path) -> None:
    graph, types = inferred(tiny_bundle / "generator.fp32.onnx", 5)
    (reduction,) = [node for node in graph.node if node.op_type.startswith("Reduce")]
    assert reduction.op_type == "ReduceSum"
    assert [dim.dim_value for dim in types[reduction.output[0]].shape.dim] == [5, 1]


# ---- sizes at the largest batch ----


def test_search_never_holds_more_than_a_slice_of_the_codebook(tiny_vq_bundle: Path) -> None:
    graph, types = inferred(tiny_vq_bundle / "decoder.fp32.onnx", MAX_BATCH)
    largest = max(elements(types[name]) for node in search(graph) for name in node.output)
    assert largest == MAX_BATCH * 64 * SLICE  # of 600 codes


@pytest.mark.full
@pytest.mark.timeout(EXPORT_SECONDS)
@pytest.mark.parametrize("which", ["generator", "decoder"])
@pytest.mark.parametrize("dataset", ["celeba_256", "lsun"])
def test_no_tensor_of_the_big_graphs_passes_the_index_limit(dataset: str, which: str) -> None:
    path = exported_by_command(dataset) / "exports" / dataset / f"{which}.fp32.onnx"
    check_older_parsers_read(path)
    graph, types = inferred(path, MAX_BATCH)
    largest = max(map(elements, types.values()))
    assert largest <= LARGEST
    if which == "decoder":
        assert largest * 128 > LARGEST * MAX_BATCH, "127 is the limit, not less"
        if dataset == "celeba_256":
            found = max(elements(types[name]) for node in search(graph) for name in node.output)
            assert found == MAX_BATCH * 4096 * SLICE
