"""Exact rewrites before export: the same function in fewer or better suited operations.

Each changes copies of the networks in place.  `REWRITES` lists them in the order in which they are
applied; docs/notes.md says why a precision takes one.  The engine `fused` exports nothing and
calls some of the same functions (engine/backends/fused/networks.py).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

from torch import Tensor, nn

from export.graphs import GraphSpec, graph_specs
from export.modules import DecoderToImage, GeneratorStep, example
from export.rewrites.folding import fold_output_projection, fold_post_quant_conv
from export.rewrites.generator import StepTable, styles_together
from export.rewrites.norms import SummedNorm
from export.rewrites.upsampling import as_transposed, upsampling_in_phases
from export.rewrites.winograd import WinogradConv
from lddgan.errors import BadInput
from lddgan.names import PRECISIONS, Precision
from lddgan.networks.autoencoder import AttnBlock, Upsample
from lddgan.networks.ncsnpp import Attention, Ncsnpp
from lddgan.preset import Preset

Which = Literal["generator", "decoder"]


class Graphs(NamedTuple):
    """The modules of the two graphs."""

    generator: GeneratorStep
    decoder: DecoderToImage
    preset: Preset


class Rewrite(NamedTuple):
    """One rewrite of the two graphs, in place."""

    name: str
    apply: Callable[[Graphs], None]
    changes: tuple[Which, ...]  # the other graph is left as it is
    taken_by: tuple[Precision, ...]


def rewritten(graphs: Graphs, names: Sequence[str]) -> Graphs:
    """Apply the named rewrites in place. Raises BadInput for an unknown name."""
    unknown = set(names) - {rewrite.name for rewrite in REWRITES}
    if unknown:
        known = ", ".join(rewrite.name for rewrite in REWRITES)
        raise BadInput(f"no rewrite {', '.join(sorted(unknown))}; there are {known}")
    for rewrite in REWRITES:
        if rewrite.name in names:
            rewrite.apply(graphs)
    return graphs


def upsampling_by(make: Callable[[Upsample], nn.Module]) -> Callable[[Graphs], None]:
    """A rewrite that puts `make(layer)` in the place of every upsampling of the decoder."""

    def apply(graphs: Graphs) -> None:
        for parent in list(graphs.decoder.modules()):
            for name, child in parent._modules.items():
                if isinstance(child, Upsample):
                    parent._modules[name] = make(child)

    return apply


def step_table(graphs: Graphs) -> None:
    """Make the time embedding of an NCSN++ and its projections constants."""
    generator = graphs.generator.generator
    if isinstance(generator, Ncsnpp):
        graphs.generator.add_module("generator", StepTable(generator, graphs.preset.steps))


def styles(graphs: Graphs) -> None:
    """Compute all styles of an NCSN++ with one matrix product."""
    if isinstance(graphs.generator.generator, Ncsnpp):
        styles_together(graphs.generator.generator)


def attention_output(graphs: Graphs) -> None:
    """Fold the projection after attention into that of its values."""
    for graph in (graphs.generator, graphs.decoder):
        for layer in graph.modules():
            if isinstance(layer, Attention | AttnBlock):
                fold_output_projection(layer)


def winograd(graphs: Graphs) -> None:
    """Compute wide 3x3 convolutions by Winograd's F(4x4,3x3)."""
    specs = graph_specs(graphs.preset)
    replace(graphs.generator, specs["generator"], nn.Conv2d, pays, WinogradConv)
    replace(graphs.decoder, specs["decoder"], nn.Conv2d, pays, WinogradConv)


def norms(graphs: Graphs) -> None:
    """Normalise large images of the generator by sums."""
    spec = graph_specs(graphs.preset)["generator"]
    replace(graphs.generator, spec, nn.GroupNorm, is_large, lambda norm, side: SummedNorm(norm))


def replace(
    graph: nn.Module,
    spec: GraphSpec,
    kind: type[nn.Module],
    where: Callable[[Any, int], bool],
    make: Callable[[Any, int], nn.Module],
) -> None:
    """Put `make(layer, side)` in the place of each layer of a kind whose inputs have one side."""
    for name, sides in input_sides(graph, spec, kind).items():
        layer = graph.get_submodule(name)
        if len(sides) == 1 and where(layer, *sides):
            parent, _, attribute = name.rpartition(".")
            graph.get_submodule(parent).add_module(attribute, make(layer, *sides))


def input_sides(graph: nn.Module, spec: GraphSpec, kind: type[nn.Module]) -> dict[str, set[int]]:
    """Sides of the (square) inputs of every layer of a kind, by the layer's name."""
    sides: dict[str, set[int]] = defaultdict(set)

    def note(name: str, inputs: tuple[Tensor, ...]) -> None:
        sides[name].add(inputs[0].shape[-1])

    shapes = copy.deepcopy(graph).to("meta")
    for name, layer in shapes.named_modules():
        if isinstance(layer, kind):
            layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
    shapes(*(example(tensor).to("meta") for tensor in spec.inputs))
    return sides


def pays(conv: nn.Conv2d, size: int) -> bool:
    """Whether Winograd's form is faster on a CPU (docs/notes.md)."""
    is_plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.groups == 1
    return is_plain and min(conv.in_channels, conv.out_channels) >= 256 and 16 <= size <= 128


def is_large(norm: nn.GroupNorm, side: int) -> bool:
    """Whether normalising by sums is faster on a CPU (docs/notes.md)."""
    return side >= 64


GENERATOR: Final = ("generator",)
DECODER: Final = ("decoder",)
BOTH: Final = ("generator", "decoder")
CPU: Final = ("fp32", "int8")
FP16: Final = ("fp16",)

REWRITES: Final = (
    Rewrite("transposed-upsampling", upsampling_by(as_transposed), DECODER, FP16),
    Rewrite("phased-upsampling", upsampling_by(upsampling_in_phases), DECODER, CPU),
    Rewrite("codebook", lambda g: fold_post_quant_conv(g.decoder.autoencoder), DECODER, PRECISIONS),
    Rewrite("attention-output", attention_output, BOTH, PRECISIONS),
    Rewrite("styles", styles, GENERATOR, PRECISIONS),
    Rewrite("step-table", step_table, GENERATOR, PRECISIONS),
    Rewrite("winograd", winograd, BOTH, ("fp32",)),
    Rewrite("norms", norms, GENERATOR, CPU),
)


# A bundle has one graph for each precision, whatever runs it: where OpenVINO and ONNX Runtime
# differ, OpenVINO, the default on CPUs, decides.
TAKES: Final[dict[Precision, tuple[str, ...]]] = {
    precision: tuple(rewrite.name for rewrite in REWRITES if precision in rewrite.taken_by)
    for precision in PRECISIONS
}
