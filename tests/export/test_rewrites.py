"""Every rewrite computes the same function, the borders included."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from export import rewrites
from export.exporter import graph_modules
from export.graphs import graph_specs
from export.modules import DecoderToImage, GeneratorStep
from export.rewrites import (
    REWRITES,
    TAKES,
    Graphs,
    input_sides,
    rewritten,
)
from export.rewrites import upsampling as up
from export.rewrites.folding import fold_output_projection, fold_post_quant_conv
from export.rewrites.generator import (
    StepTable,
    styles_together,
)
from export.rewrites.norms import SummedNorm
from export.rewrites.upsampling import as_transposed, upsampling_in_phases
from export.rewrites.winograd import WinogradConv, minimal_filtering
from export.to_onnx import export_graph
from lddgan.checkpoint import Model
from lddgan.errors import BadInput
from lddgan.networks.autoencoder import AttnBlock, Upsample
from lddgan.networks.configs import KlConfig
from lddgan.networks.ncsnpp import Attention
from tests.small import PRESETS as SMALL
from tests.small import small_model

EXACT = 1e-12  # of the range, in float64
ROUNDED = 1e-5  # of the range, in float32


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def filled(layer: nn.Module, seed: int) -> nn.Module:
    """The layer in float64 with weights that are all of some size."""
    layer.double()
    for index, parameter in enumerate(layer.parameters()):
        fan_in = max(1, parameter[0].numel())
        parameter.data = draw(seed + index, *parameter.shape) / fan_in**0.5
    return layer.requires_grad_(False)


def error(made: Tensor, true: Tensor) -> float:
    assert made.shape == true.shape and made.dtype == true.dtype
    return float((made - true).abs().max() / true.abs().max())


@contextmanager
def whole_float64() -> Iterator[None]:
    """In float64 also what networks compute in float32 whatever they are given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        yield


def check(before: nn.Module, after: nn.Module, *inputs: Tensor) -> None:
    """Equal in float64, and in float32 to within rounding."""
    with whole_float64():
        true = before(*inputs)
        assert error(after(*inputs), true) < EXACT
    halves = [x.float() if x.is_floating_point() else x for x in inputs]
    single = copy.deepcopy(after).float()(*halves)
    assert error(single.double(), true) < ROUNDED


# ---- upsampling ----

sizes = st.tuples(*[st.integers(1, 7)] * 4)


@pytest.mark.parametrize("fold", [as_transposed, upsampling_in_phases])
@settings(max_examples=25, deadline=None)
@given(sizes=sizes, batch=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_nearest_upsampling_and_convolution(
    fold: Callable[[Upsample], nn.Module], sizes: tuple[int, ...], batch: int, seed: int
) -> None:
    inputs, outputs, height, width = sizes
    upsample = Upsample(inputs)
    upsample.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    filled(upsample, seed)
    check(upsample, fold(upsample), draw(seed + 9, batch, inputs, height, width))


@pytest.mark.parametrize(
    "taps",
    [((0,), (0, 1), (1, 2), (2,)), ((2,), (0, 1), (1, 2), (0,)), ((1,), (1, 2), (0, 1), (0,))],
    ids=["mirrored", "inner taps swapped", "one tap off"],
)
def test_comparison_notices_a_wrong_tap_map(
    monkeypatch: pytest.MonkeyPatch, taps: tuple[tuple[int, ...], ...]
) -> None:
    upsample = filled(Upsample(3), 0)
    monkeypatch.setattr(up, "TAPS", taps)
    x = draw(0, 1, 3, 5, 4)
    assert error(as_transposed(upsample)(x), upsample(x)) > 0.1


def test_phases_are_interleaved_by_one_operator(tmp_path: Path, tiny_model: Model) -> None:
    spec = graph_specs(tiny_model.preset)["decoder"]

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = upsampling_in_phases(filled(Upsample(4), 0).float())

        def forward(self, x_0: Tensor) -> Tensor:
            return self.up(x_0).permute(0, 2, 3, 1)[..., :3].to(torch.uint8)

    path = tmp_path / "decoder.onnx"
    export_graph(Decoder().eval(), spec, path, 127)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("Conv") == 4 and operators.count("DepthToSpace") == 1
    assert "Reshape" not in operators and "Pad" not in operators


# ---- Winograd ----


@settings(max_examples=15, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    tiles=st.integers(1, 5),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_winograd(channels: tuple[int, int], tiles: int, batch: int, seed: int) -> None:
    conv = filled(nn.Conv2d(*channels, 3, padding=1, bias=seed % 2 == 0), seed)
    size = 4 * tiles
    check(conv, WinogradConv(conv, size), draw(seed + 9, batch, channels[0], size, size))


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_winograd_in_strips(rows: int) -> None:
    conv = filled(nn.Conv2d(3, 2, 3, padding=1), 1)
    strips = WinogradConv(conv, 28)
    strips.rows = rows
    check(conv, strips, draw(2, 2, 3, 28, 28))


def test_winograd_of_many_channels_is_within_rounding() -> None:
    conv = filled(nn.Conv2d(512, 32, 3, padding=1), 0)
    x = F.silu(draw(1, 2, 512, 32, 32))
    check(conv, WinogradConv(conv, 32), x)
    # At 0, 1, -1, 2, -2 it is 1.3e-5: a good choice of points is part of the rewrite.
    single = WinogradConv(copy.deepcopy(conv).float(), 32)
    assert error(single(x.float()).double(), conv(x)) < 4e-6


def test_winograd_matrices_are_minimal_filtering() -> None:
    """Y = A'[(G g) * (B' d)] is the correlation of 6 samples with 3 taps, in one dimension."""
    outputs, kernel, inputs = minimal_filtering()
    for d in np.eye(6):
        for g in np.eye(3):
            found = outputs @ ((kernel @ g) * (inputs @ d))
            assert np.abs(found - np.correlate(d, g, "valid")).max() < 1e-14


# ---- attention, norms, embeddings ----


@pytest.mark.parametrize("affine", [False, True])
def test_norm_by_sums(affine: bool) -> None:
    norm = filled(nn.GroupNorm(4, 12, eps=1e-6, affine=affine), 0)
    check(norm, SummedNorm(norm), 3 + draw(1, 2, 12, 6, 6))


@pytest.mark.parametrize(
    "layer", [Attention(32), AttnBlock(KlConfig(ch_mult=(1,), groups=8), 32)], ids=type
)
def test_output_projection(layer: Attention | AttnBlock) -> None:
    layer = filled(layer, 4)
    folded = copy.deepcopy(layer)
    fold_output_projection(folded)
    check(layer, folded, draw(5, 2, 32, 3, 5))
    assert sum(1 for _ in folded.parameters()) == sum(1 for _ in layer.parameters()) - 2


def test_codebook_through_the_convolution(tiny_vq_model: Model) -> None:
    plain = copy.deepcopy(tiny_vq_model.autoencoder).double()
    plain.post_quant_conv.weight.data = draw(0, 3, 3, 1, 1)
    plain.post_quant_conv.bias.data = draw(1, 3)
    folded = copy.deepcopy(plain)
    fold_post_quant_conv(folded)
    codes = plain.quantize.embedding.weight[:128]
    latent = codes.reshape(2, 8, 8, 3).permute(0, 3, 1, 2)
    before, after = (nn.Sequential(m.quantize, m.post_quant_conv) for m in (plain, folded))
    check(before, after, latent)
    assert before(latent).unique().numel() == codes.numel(), "every code is met"


def spread(model: Model) -> Model:
    """The model with weights of some size everywhere: the untrained network starts as nearly 0."""
    clone = copy.deepcopy(model)
    for seed, parameter in enumerate(clone.generator.parameters()):
        parameter.data += 0.05 * draw(seed, *parameter.shape, dtype=torch.float32)
    return clone


def test_styles_and_time_embeddings(tiny_model: Model) -> None:
    generator = spread(tiny_model).generator.double().requires_grad_(False)
    together, table = copy.deepcopy(generator), copy.deepcopy(generator)
    styles_together(together)
    with whole_float64():
        steps = StepTable(table, tiny_model.preset.steps)
    x, z = draw(0, 3, 4, 8, 8), draw(1, 3, 10)
    results = []
    for t in range(tiny_model.preset.steps):
        step = torch.tensor([t])
        check(generator, together, x, step, z)
        check(generator, steps, x, step, z)
        results.append(generator(x, step, z))
    assert error(results[0], results[1]) > 0.01, "the steps differ"
    assert error(generator(x, step, z.flip(0)), results[-1]) > 0.01, "the latents differ"


# ---- whole graphs ----


def graphs_of(model: Model) -> Graphs:
    clone = spread(model)
    return Graphs(
        GeneratorStep(clone.generator, model.preset).eval(),
        DecoderToImage(clone.autoencoder, model.preset).eval(),
        model.preset,
    )


def in_float64(graphs: Graphs) -> Graphs:
    """A copy."""
    generator, decoder = copy.deepcopy((graphs.generator, graphs.decoder))
    return Graphs(generator.double(), decoder.double(), graphs.preset)


def outputs(graphs: Graphs) -> tuple[Tensor, Tensor]:
    """x_next of the second step and the image before it is rounded, in the dtype of the weights."""
    preset, dtype = graphs.preset, next(graphs.generator.parameters()).dtype
    x = draw(0, 2, *preset.latent_shape).to(dtype)
    z = draw(1, 2, preset.generator.nz).to(dtype)
    with torch.no_grad():
        x_next = graphs.generator(x, torch.tensor([1], dtype=torch.int32), z, x.flip(0))
        return x_next, graphs.decoder.autoencoder.decode(x)


EACH = [(rewrite.name,) for rewrite in REWRITES]


@pytest.mark.parametrize("names", [*EACH, *TAKES.values()], ids="+".join)
@pytest.mark.parametrize("kind", ["tiny_model", "tiny_vq_model"])
def test_graphs_compute_the_same(
    kind: str,
    names: tuple[str, ...],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rewrites, "pays", lambda conv, size: is_plain(conv) and size >= 8)
    monkeypatch.setattr(rewrites, "is_large", lambda norm, side: side >= 8)
    single = graphs_of(request.getfixturevalue(kind))
    before = in_float64(single)
    with whole_float64():
        after = rewritten(in_float64(single), names)
        true = outputs(before)
        assert max(map(error, outputs(after), true)) < EXACT
    if names != ("codebook",) or kind == "tiny_vq_model":
        assert layers(after) != layers(before), "something was rewritten"
    made = outputs(rewritten(single, names))
    assert max(error(one.double(), its) for one, its in zip(made, true, strict=True)) < ROUNDED


@pytest.mark.parametrize("name", SMALL)
def test_graphs_of_other_families_compute_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle of the wavelet network calls a block at two sizes: its layers are left alone."""
    monkeypatch.setattr(rewrites, "pays", lambda conv, size: is_plain(conv) and size >= 4)
    monkeypatch.setattr(rewrites, "is_large", lambda norm, side: side >= 4)
    single = graphs_of(small_model(name))
    before = in_float64(single)
    with whole_float64():
        after = rewritten(in_float64(single), TAKES["fp32"])
        true = outputs(before)
        assert max(map(error, outputs(after), true)) < EXACT
    assert layers(after) != layers(before), "something was rewritten"


def is_plain(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.groups == 1


def layers(graphs: Graphs) -> list[tuple[type, tuple[int, ...]]]:
    """Types and sizes of all layers."""
    return [
        (type(layer), tuple(parameter.numel() for parameter in layer.parameters()))
        for graph in (graphs.generator, graphs.decoder)
        for layer in graph.modules()
    ]


def test_sizes_are_those_that_the_convolutions_see(tiny_model: Model) -> None:
    decoder = graphs_of(tiny_model).decoder
    convolutions = [m for m in decoder.autoencoder.decoder.modules() if isinstance(m, nn.Conv2d)]
    seen = input_sides(decoder, graph_specs(tiny_model.preset)["decoder"], nn.Conv2d)
    assert seen["autoencoder.decoder.conv_in"] == {8}
    assert seen["autoencoder.decoder.conv_out"] == {32}
    assert len(seen) == len(convolutions) + 1  # and post_quant_conv
    assert {p.device.type for p in decoder.parameters()} == {"cpu"}


def test_a_layer_that_sees_two_sides_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrites, "pays", lambda conv, size: is_plain(conv))
    graphs = rewritten(graphs_of(small_model("small-wavelet")), ("winograd",))
    modules = graphs.generator.generator.all_modules
    middle = [layer for layer in modules if isinstance(layer, Attention)][-2]
    after = modules[list(modules).index(middle) + 1]  # runs at 8x8 and at 4x4
    assert isinstance(after.Conv_0, nn.Conv2d) and isinstance(after.Conv_1, nn.Conv2d)
    assert any(isinstance(layer, WinogradConv) for layer in graphs.generator.modules())


def test_unknown_rewrites_are_named(tiny_model: Model) -> None:
    with pytest.raises(BadInput, match="no rewrite wino; there are transposed-upsampling, "):
        graph_modules(tiny_model, ("styles", "wino"))


def test_exported_modules_are_copies(tiny_model: Model) -> None:
    before = sum(isinstance(module, Upsample) for module in tiny_model.autoencoder.modules())
    weights = {name: tensor.clone() for name, tensor in tiny_model.generator.state_dict().items()}
    modules = graph_modules(tiny_model, TAKES["fp16"])
    modules["generator"].half()
    assert sum(isinstance(m, Upsample) for m in tiny_model.autoencoder.modules()) == before == 2
    after = tiny_model.generator.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
