"""fp32 graphs -> 8-bit graphs for ONNX Runtime on CPUs.

The wide convolutions multiply bytes; everything between them (norms, SiLU, residual sums,
attention) stays in fp32.  docs/performance.md has what was measured for these choices.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from export.agreement import Run, Stages, call_inputs, run_chain
from export.bundle import graph_file
from export.graphs import graph_specs
from lddgan.noise import Noise, draw
from lddgan.preset import Preset

SEED: Final = 1  # of the images that calibrate; others are verified
IMAGES: Final = 4
NARROWEST: Final = 16  # channels; the first and the last convolutions have 3 or 4 on one side

Feeds = Mapping[str, NDArray[Any]]


class Samples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """What a graph is given while the ranges of its tensors are found."""

    def __init__(self, feeds: Iterable[Feeds]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self.feeds, None)


def quantise_graphs(preset: Preset, stages: Stages, floats: Path, folder: Path) -> None:
    """Write both graphs of `folder` in int8, made of the fp32 graphs of `floats`.

    `stages` run the same networks in fp32.  The generator of a VQ model is copied as it is: its
    latents, off by 1e-2, would change an eighth of celeba_256's codes.
    """
    feeds = calibration_inputs(preset, stages)
    for which in graph_specs(preset):
        if which == "generator" and preset.autoencoder.has_codes:
            keep_generator(floats, folder)
        else:
            source, target = floats / graph_file(which, "fp32"), folder / graph_file(which, "int8")
            quantise(source, target, feeds[which])


def keep_generator(floats: Path, folder: Path) -> None:
    """Make the fp32 generator of `floats` that of `folder`'s int8."""
    source, target = graph_file("generator", "fp32"), graph_file("generator", "int8")
    shutil.copyfile(floats / source, folder / target)


def calibration_inputs(preset: Preset, stages: Stages) -> dict[str, list[Feeds]]:
    """What the two graphs are given when `stages` make IMAGES images of SEED, one at a time."""
    feeds: dict[str, list[Feeds]] = {"generator": [], "decoder": []}
    for image in range(IMAGES):
        noise = draw(preset, image, 1, seed=SEED)
        made = run_chain(stages, preset, noise)
        for which, arrays in arrays_given(preset, noise, made):
            names = [tensor.name for tensor in graph_specs(preset)[which].inputs]
            feeds[which].append(dict(zip(names, arrays, strict=True)))
    return feeds


def arrays_given(
    preset: Preset, noise: Noise, made: Run
) -> Iterator[tuple[str, Sequence[NDArray[Any]]]]:
    """The arrays of every call of a chain that made `made`, with the name of the graph."""
    for k, x in enumerate([noise.x_T, *made.steps[:-1]]):
        yield "generator", call_inputs(preset, noise, k, x)
    yield "decoder", (made.x_0,)


def quantise(source: Path, target: Path, feeds: Sequence[Feeds]) -> None:
    """Write the graph `source` (fp32) with 8-bit convolutions to `target`.

    Weights become int8, one scale per output channel; activations uint8 with a zero point, their
    ranges wide enough for every value that `feeds` make: clipping a few of a trained model's
    changes images more than coarser steps do.  A convolution reads and writes bytes (QDQ form,
    which ONNX Runtime runs as QLinearConv); CPUs with VNNI add their products without saturation.
    The same inputs give the same bytes.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(source), data_prop=True)
    add_pre_process_metadata(model)  # the exporter's graphs are optimised; without it ORT warns
    quantize_static(
        model,
        target,
        Samples(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=kept_in_fp32(model.graph),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"WeightSymmetric": True},
    )
    quantised = onnx.load(target)
    interleave_bytes(quantised.graph)
    del quantised.metadata_props[:]
    onnx.checker.check_model(quantised)
    onnx.save(quantised, target)


def kept_in_fp32(graph: onnx.GraphProto) -> list[str]:
    """Names of the convolutions that are not quantised."""
    kernels = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    return [node.name for node in convolutions if not pays(kernels[node.input[1]])]


def pays(kernel: tuple[int, ...]) -> bool:
    """Whether a convolution with a kernel [out,in/groups,height,width] is worth 8 bits.

    Not the first and the last, nor filters (one input), nor 1x1: those are attention's, and the
    skips', which carry the unnormalised sum of all blocks and cost the most accuracy.
    """
    outputs, inputs, height, width = kernel
    return min(outputs, inputs) >= NARROWEST and height * width > 1


def interleave_bytes(graph: onnx.GraphProto) -> None:
    """Bring the phases of upsampling together while they are bytes, in place.

    Concat and DepthToSpace in fp32 become copies of bytes: see `rows_of_bytes`.  The four phases
    share the widest of their ranges.
    """
    makes = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for shuffle in [node for node in graph.node if node.op_type == "DepthToSpace"]:
        concat = makes[shuffle.input[0]]
        phases = [makes[name] for name in concat.input]
        if any(node.op_type != "DequantizeLinear" for node in phases):
            continue  # of a FIR filter, in fp32
        _, scales, zeros = zip(*(node.input for node in phases), strict=True)
        share_range([constants[name] for name in scales], [constants[name] for name in zeros])
        channels = channels_of(makes[makes[phases[0].input[0]].input[0]], makes, constants)
        nodes = rows_of_bytes(phases, channels, shuffle.output[0])
        position = list(graph.node).index(shuffle)
        for node in (shuffle, concat, *phases):
            graph.node.remove(node)
        for node in reversed(nodes):
            graph.node.insert(position - len(phases) - 1, node)


def rows_of_bytes(
    phases: Sequence[onnx.NodeProto], channels: int, name: str
) -> list[onnx.NodeProto]:
    """Nodes that make `name`, [B,C,2h,2w], of four uint8 [B,C,h,w] and copy whole rows of channels.

    `phases` dequantise the four, which are of even and odd columns of even, then of odd rows.  The
    channels of two columns side by side are [B,h,w,2C], two rows of those [B,h,2w,2C]: in memory
    that is [B,2h,2w,C].
    """
    parts = [f"{node.input[0]}_nhwc" for node in phases]
    even, odd, both, image = (f"{name}_{part}" for part in ("even", "odd", "both", "nhwc"))
    shape = numpy_helper.from_array(np.array([0, -1, 0, channels], np.int64))
    nodes = [
        helper.make_node("Transpose", node.input[:1], [part], perm=(0, 2, 3, 1))
        for node, part in zip(phases, parts, strict=True)
    ]
    nodes += [
        helper.make_node("Concat", parts[:2], [even], axis=3),
        helper.make_node("Concat", parts[2:], [odd], axis=3),
        helper.make_node("Concat", [even, odd], [both], axis=2),
        helper.make_node("Constant", [], [f"{name}_shape"], value=shape),
        helper.make_node("Reshape", [both, f"{name}_shape"], [image]),
        helper.make_node("Transpose", [image], [f"{name}_bytes"], perm=(0, 3, 1, 2)),
        helper.make_node("DequantizeLinear", [f"{name}_bytes", *phases[0].input[1:]], [name]),
    ]
    for node in nodes:
        node.name = f"{node.output[0]}_{node.op_type}"
    return nodes


def channels_of(
    conv: onnx.NodeProto,
    makes: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
) -> int:
    """Output channels of a convolution whose kernel is dequantised."""
    return constants[makes[conv.input[1]].input[0]].dims[0]


def share_range(scales: Sequence[onnx.TensorProto], zeros: Sequence[onnx.TensorProto]) -> None:
    """Set every scale and zero point of uint8 tensors to those of the union of their ranges."""
    pairs = [
        (float(numpy_helper.to_array(scale)), int(numpy_helper.to_array(zero)))
        for scale, zero in zip(scales, zeros, strict=True)
    ]
    low = min(-scale * zero for scale, zero in pairs)
    high = max(scale * (255 - zero) for scale, zero in pairs)
    step = np.asarray((high - low) / 255, np.float32)
    level = np.asarray(round(-low / float(step)), np.uint8)
    for scale, zero in zip(scales, zeros, strict=True):
        scale.CopyFrom(numpy_helper.from_array(step, scale.name))
        zero.CopyFrom(numpy_helper.from_array(level, zero.name))
