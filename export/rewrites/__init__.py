"""Exact rewrites before export: the same function in fewer or better suited operations.

Each changes copies of the networks in place.  `REWRITES` is the table of them, in the order in
which they are applied, and says what takes each and why; `TAKES` has the lists.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

from export.graphs import GraphSpec, graph_specs
from export.modules import DecoderToImage, GeneratorStep, example
from export.rewrites.attention import fold_output_projection
from export.rewrites.codebook import fold_post_quant_conv
from export.rewrites.generator import (
    BareGroupNorm,
    SkipFirst,
    StepTable,
    rescale_in_weights,
    styles_together,
)
from export.rewrites.upsampling import as_transposed, fir_in_phases, upsampling_in_phases
from export.rewrites.winograd import WinogradConv
from lddgan.errors import BadInput
from lddgan.names import Precision
from lddgan.networks.autoencoder import AttnBlock, Upsample
from lddgan.networks.generator import Attention, ResidualBlock
from lddgan.networks.layers import FirUp, GroupNorm
from lddgan.preset import Preset

TakenBy = Literal["fp32", "fp16", "int8", "fused"]  # graphs of a precision, and the engine `fused`
Found = TypeVar("Found", bound=nn.Module)


class Graphs(NamedTuple):
    """The modules of the two graphs."""

    generator: GeneratorStep
    decoder: DecoderToImage
    preset: Preset


class Rewrite(NamedTuple):
    """One rewrite of the two graphs, in place."""

    name: str
    apply: Callable[[Graphs], None]
    what: str
    changes: tuple[str, ...]  # the graphs; the other is left as it is
    taken_by: tuple[TakenBy, ...]
    why: str


def rewritten(graphs: Graphs, names: Sequence[str]) -> Graphs:
    """Apply the named rewrites, in place. Raises BadInput for a name that is none."""
    unknown = set(names) - {rewrite.name for rewrite in REWRITES}
    if unknown:
        known = ", ".join(rewrite.name for rewrite in REWRITES)
        raise BadInput(f"no rewrite {', '.join(sorted(unknown))}; there are {known}")
    for rewrite in REWRITES:
        if rewrite.name in names:
            rewrite.apply(graphs)
    return graphs


def names_of(text: str) -> tuple[str, ...]:
    """Names in a comma-separated list, or none of them: "none"."""
    return () if text == "none" else tuple(text.split(","))


def transposed_upsampling(graphs: Graphs) -> None:
    replace(graphs.decoder, Upsample, as_transposed)


def phased_upsampling(graphs: Graphs) -> None:
    replace(graphs.decoder, Upsample, upsampling_in_phases)


def phased_fir(graphs: Graphs) -> None:
    replace(graphs.generator, FirUp, fir_in_phases)


def bare_norms(graphs: Graphs) -> None:
    replace(graphs.generator, GroupNorm, BareGroupNorm, lambda norm: not norm.affine)


def styles(graphs: Graphs) -> None:
    styles_together(graphs.generator.generator)


def step_table(graphs: Graphs) -> None:
    generator = graphs.generator.generator
    graphs.generator.add_module("generator", StepTable(generator, graphs.preset.steps))


def rescaled_weights(graphs: Graphs) -> None:
    for block in graphs.generator.modules():
        if isinstance(block, ResidualBlock) and isinstance(block.Conv_2, nn.Conv2d):
            rescale_in_weights(block)


def codebook(graphs: Graphs) -> None:
    fold_post_quant_conv(graphs.decoder.autoencoder)


def skip_first(graphs: Graphs) -> None:
    for block in graphs.generator.modules():
        if isinstance(block, ResidualBlock) and isinstance(block.resample_skip, FirUp):
            conv = block.get_submodule("Conv_2")
            assert isinstance(conv, nn.Conv2d)
            up = FirUp(conv.out_channels).to(conv.weight.dtype)
            block.add_module("Conv_2", SkipFirst(conv, up))
            block.resample_skip = nn.Identity()


def attention_output(graphs: Graphs) -> None:
    for graph in (graphs.generator, graphs.decoder):
        for layer in graph.modules():
            if isinstance(layer, Attention | AttnBlock):
                fold_output_projection(layer)


def winograd(graphs: Graphs) -> None:
    specs = graph_specs(graphs.preset)
    for graph, spec in ((graphs.generator, specs["generator"]), (graphs.decoder, specs["decoder"])):
        for name, size in convolution_sizes(graph, spec).items():
            conv = graph.get_submodule(name)
            if isinstance(conv, nn.Conv2d) and pays(conv, size):
                parent, _, attribute = name.rpartition(".")
                graph.get_submodule(parent).add_module(attribute, WinogradConv(conv, size))


def replace(
    graph: nn.Module,
    kind: type[Found],
    make: Callable[[Found], nn.Module],
    where: Callable[[Found], bool] = lambda _: True,
) -> None:
    """Put `make(layer)` in the place of every layer of a kind."""
    for parent in list(graph.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, kind) and where(child):
                parent._modules[name] = make(child)


def convolution_sizes(graph: nn.Module, spec: GraphSpec) -> dict[str, int]:
    """Height, which is the width, of what every convolution of a graph is given; by its name."""
    sizes: dict[str, int] = {}

    def note(name: str, given: tuple[Tensor, ...]) -> None:
        sizes[name] = given[0].shape[-1]

    shapes = copy.deepcopy(graph).to("meta")
    for name, layer in shapes.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, given, name=name: note(name, given))
    shapes(*(example(tensor).to("meta") for tensor in spec.inputs))
    return sizes


def pays(conv: nn.Conv2d, size: int) -> bool:
    """Whether Winograd's form is faster on a CPU (docs/performance.md)."""
    is_plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.groups == 1
    return is_plain and min(conv.in_channels, conv.out_channels) >= 256 and 16 <= size <= 128


# What runs the graphs of a list.  A bundle has one for each precision, whatever runs it: where
# OpenVINO and ONNX Runtime differ, OpenVINO, the default on CPUs, decides.
SERVES: Final[dict[TakenBy, str]] = {
    "fp32": "OpenVINO and ONNX Runtime on a CPU; any engine that is asked for fp32",
    "fp16": "ONNX Runtime, TensorRT and TensorRT-RTX on a GPU",
    "int8": "OpenVINO and ONNX Runtime on a CPU",
    "fused": "the engine `fused`: no graph, but the same in engine/backends/fused/networks.py",
}
IN_THE_NOISE: Final = "alone within the noise of the ladder"

# Why: docs/performance.md has the measurements, all on a CPU; none was made on a GPU yet.
# rescaled-weights looks for the convolutions that skip-first replaces, and that for the filters
# that phased-fir replaces.
REWRITES: Final = (
    Rewrite(
        "transposed-upsampling",
        transposed_upsampling,
        "nearest x2 and its 3x3 convolution as one transposed convolution",
        changes=("decoder",),
        taken_by=("fp16", "fused"),
        why="one operator, for GPUs; ONNX Runtime on a CPU takes 255 ms where phases take 99",
    ),
    Rewrite(
        "phased-upsampling",
        phased_upsampling,
        "the same as four 2x2 convolutions, one for each parity of row and column",
        changes=("decoder",),
        taken_by=("fp32", "int8"),
        why="ONNX Runtime: 99 ms for 256 channels at 128² to 256², 170 as published",
    ),
    Rewrite(
        "codebook",
        codebook,
        "the codebook through the convolution that follows it, as a table",
        changes=("decoder",),
        taken_by=("fp32", "fp16", "int8", "fused"),
        why="one convolution less; not timed, as lsun has no codebook",
    ),
    Rewrite(
        "rescaled-weights",
        rescaled_weights,
        "the factor 1/sqrt(2) of a residual sum in the weights of its two convolutions",
        changes=("generator",),
        taken_by=("fp32", "fp16", "int8"),
        why=f"one multiplication less; {IN_THE_NOISE}; the kernel of fused that adds also scales",
    ),
    Rewrite(
        "skip-first",
        skip_first,
        "the 1x1 convolution of a skip before its FIR upsampling",
        changes=("generator",),
        taken_by=("fp32", "fp16", "int8", "fused"),
        why=f"a quarter of its multiply-adds; {IN_THE_NOISE}",
    ),
    Rewrite(
        "phased-fir",
        phased_fir,
        "FIR upsampling as four 2x2 filters, without inserted zeros",
        changes=("generator",),
        taken_by=("fp32", "int8"),
        why=f"a quarter of its multiply-adds; {IN_THE_NOISE}; fp16: not tried; fused has a kernel",
    ),
    Rewrite(
        "attention-output",
        attention_output,
        "the projection after attention folded into that of its values",
        changes=("generator", "decoder"),
        taken_by=("fp32", "fp16", "int8"),
        why=f"one matrix product less; {IN_THE_NOISE}; in fused not tried",
    ),
    Rewrite(
        "styles",
        styles,
        "all styles of the adaptive norms by one matrix product",
        changes=("generator",),
        taken_by=("fp32", "fp16", "int8", "fused"),
        why=f"one matrix product for dozens; {IN_THE_NOISE}",
    ),
    Rewrite(
        "step-table",
        step_table,
        "the time embedding and its projections as constants",
        changes=("generator",),
        taken_by=("fp32", "fp16", "int8", "fused"),
        why=f"a lookup for dozens of matrix products; {IN_THE_NOISE}",
    ),
    Rewrite(
        "bare-norms",
        bare_norms,
        "adaptive norms without scales of ones and shifts of zeros",
        changes=("generator",),
        taken_by=("fp32", "fp16", "int8"),
        why=f"two passes less; {IN_THE_NOISE}; the norm of fused never has them",
    ),
    Rewrite(
        "winograd",
        winograd,
        "3x3 convolutions by Winograd's F(4x4,3x3), where it pays",
        changes=("generator", "decoder"),
        taken_by=("fp32",),
        why="OpenVINO: 28 ms instead of 54 (512 channels, 64²); its sums need more than 8 bits; "
        "fp16: not tried",
    ),
)


def names_taken_by(graphs: TakenBy) -> tuple[str, ...]:
    """The rewrites of one list, in the order in which they are applied."""
    return tuple(rewrite.name for rewrite in REWRITES if graphs in rewrite.taken_by)


TAKES: Final[dict[Precision, tuple[str, ...]]] = {
    "fp32": names_taken_by("fp32"),
    "fp16": names_taken_by("fp16"),
    "int8": names_taken_by("int8"),
}
