"""Exact rewrites before export: the same function in fewer or better suited operations.

Each changes copies of the networks in place.  `REWRITES` is the list of them, in the order in which
they are applied; `TAKES` says which graphs take which.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

from torch import Tensor, nn

from export.graphs import GraphSpec, Precision, graph_specs
from export.modules import DecoderToImage, GeneratorStep
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
from export.to_onnx import example
from lddgan.errors import BadInput
from lddgan.networks.autoencoder import AttnBlock, Upsample
from lddgan.networks.generator import Attention, ResidualBlock
from lddgan.networks.layers import FirUp, GroupNorm
from lddgan.presets import Preset

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
            block.add_module("Conv_2", SkipFirst(conv, FirUp(conv.out_channels)))
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


# rescaled-weights looks for the convolutions that skip-first replaces, and that for the filters
# that phased-fir replaces.
REWRITES: Final = (
    Rewrite(
        "transposed-upsampling",
        transposed_upsampling,
        "nearest x2 and its 3x3 convolution as one transposed convolution",
        ("decoder",),
    ),
    Rewrite(
        "phased-upsampling",
        phased_upsampling,
        "the same as four 2x2 convolutions, one for each parity of row and column",
        ("decoder",),
    ),
    Rewrite(
        "codebook",
        codebook,
        "the codebook through the convolution that follows it, as a table",
        ("decoder",),
    ),
    Rewrite(
        "rescaled-weights",
        rescaled_weights,
        "the factor 1/sqrt(2) of a residual sum in the weights of its two convolutions",
        ("generator",),
    ),
    Rewrite(
        "skip-first",
        skip_first,
        "the 1x1 convolution of a skip before its FIR upsampling",
        ("generator",),
    ),
    Rewrite(
        "phased-fir",
        phased_fir,
        "FIR upsampling as four 2x2 filters, without inserted zeros",
        ("generator",),
    ),
    Rewrite(
        "attention-output",
        attention_output,
        "the projection after attention folded into that of its values",
        ("generator", "decoder"),
    ),
    Rewrite(
        "styles",
        styles,
        "all styles of the adaptive norms by one matrix product",
        ("generator",),
    ),
    Rewrite(
        "step-table",
        step_table,
        "the time embedding and its projections as constants",
        ("generator",),
    ),
    Rewrite(
        "bare-norms",
        bare_norms,
        "adaptive norms without scales of ones and shifts of zeros",
        ("generator",),
    ),
    Rewrite(
        "winograd",
        winograd,
        "3x3 convolutions by Winograd's F(4x4,3x3), where it pays",
        ("generator", "decoder"),
    ),
)

# fp32 and int8 graphs are made for CPUs, fp16 graphs for GPUs.  docs/performance.md has the
# measurements; what fp16 takes was not yet measured on a GPU.
ON_CPUS: Final = (
    "phased-upsampling",
    "codebook",
    "rescaled-weights",
    "skip-first",
    "phased-fir",
    "attention-output",
    "styles",
    "step-table",
    "bare-norms",
)
TAKES: Final[dict[Precision, tuple[str, ...]]] = {
    "fp32": (*ON_CPUS, "winograd"),
    "fp16": (
        "transposed-upsampling",
        "codebook",
        "rescaled-weights",
        "skip-first",
        "attention-output",
        "styles",
        "step-table",
        "bare-norms",
    ),
    "int8": ON_CPUS,  # Winograd's sums need more than 8 bits
}
