"""fp32 graphs -> 8-bit graphs for ONNX Runtime on CPUs.

The wide convolutions multiply bytes; everything between them (norms, SiLU, residual sums,
attention) stays in fp32.  docs/notes.md has what was measured for these choices.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from export.agreement import Images, Latents, Runner, run_chain
from export.bundle import graph_file
from export.graphs import generator_inputs
from lddgan.noise import draw
from lddgan.preset import Preset
from lddgan.progress import Log

SEED: Final = 1  # of the images that calibrate; others are verified
IMAGES: Final = 4
NARROWEST: Final = 16  # channels; the first and the last convolutions have 3 or 4 on one side

Feeds = Mapping[str, NDArray[Any]]


def quantise_graphs(
    preset: Preset, runner: Runner, floats: Path, folder: Path, log: Log = lambda _: None
) -> None:
    """Write both graphs of `folder` in int8, made of the fp32 graphs of `floats`.

    `runner` runs the same networks in fp32.  Copied as they are: a graph without wide convolutions,
    which is told, and the generator of a VQ model, whose latents, off by 1e-2, would change an
    eighth of celeba_256's codes.
    """
    feeds = calibration_inputs(preset, runner)
    for which in ("generator", "decoder"):
        model = onnx.load(floats / graph_file(which, "fp32"))
        if which == "generator" and preset.autoencoder.has_codes:
            keep(which, floats, folder)
        elif not wide_convolutions(model.graph):
            log(f"int8: the {which} has no wide convolutions and stays in fp32")
            keep(which, floats, folder)
        else:
            quantise(model, folder / graph_file(which, "int8"), feeds[which])


def keep(which: str, floats: Path, folder: Path) -> None:
    """Copy a fp32 graph of `floats` to `folder` as the int8 one."""
    shutil.copyfile(floats / graph_file(which, "fp32"), folder / graph_file(which, "int8"))


def calibration_inputs(preset: Preset, runner: Runner) -> dict[str, list[Feeds]]:
    """Collect the inputs of both graphs while `runner` makes IMAGES images of SEED, one by one."""
    feeds: dict[str, list[Feeds]] = {"generator": [], "decoder": []}

    def step(*args: Any) -> Latents:
        feeds["generator"].append(generator_inputs(*args))
        return runner.step(*args)

    def decode(x_0: Latents) -> Images:
        feeds["decoder"].append({"x_0": x_0})
        return runner.decode(x_0)

    for image in range(IMAGES):
        run_chain(Runner(step, decode), draw(preset, image, 1, SEED))
    return feeds


def quantise(model: onnx.ModelProto, target: Path, feeds: Sequence[Feeds]) -> None:
    """Write a fp32 graph with 8-bit convolutions to `target`, the same bytes each time.

    Weights become int8, one scale per output channel; activations uint8 with a zero point.  The
    range of an activation holds every value that `feeds` make: clipping a few values of a trained
    model changes its images more than coarser steps do.  A convolution reads and writes bytes (QDQ
    form, which ONNX Runtime runs as QLinearConv); CPUs with VNNI sum without saturation.
    """
    rest = iter(feeds)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    add_pre_process_metadata(model)  # the exporter's graphs are optimised; without it ORT warns
    quantize_static(
        model,
        target,
        SimpleNamespace(get_next=lambda: next(rest, None)),  # all that a reader is asked for
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_quantize=wide_convolutions(model.graph),
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


def wide_convolutions(graph: onnx.GraphProto) -> list[str]:
    """Names of the convolutions that are quantised.

    All but the first and the last, filters (one input), and 1x1: those are in attention and in
    skips, which carry the unnormalised sum of all blocks and cost the most accuracy.
    """
    kernels = {weight.name: tuple(weight.dims) for weight in graph.initializer}  # [out,in,h,w]
    convolutions = [(node, kernels[node.input[1]]) for node in graph.node if node.op_type == "Conv"]
    return [
        node.name
        for node, kernel in convolutions
        if min(kernel[:2]) >= NARROWEST and kernel[2:] != (1, 1)
    ]


def interleave_bytes(graph: onnx.GraphProto) -> None:
    """Join the phases of upsampling while they are bytes, in place.

    Concat and DepthToSpace in fp32 become copies of bytes (`rows_of_bytes`).  The four phases share
    the widest of their ranges.
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
        conv = makes[makes[phases[0].input[0]].input[0]]
        channels = constants[makes[conv.input[1]].input[0]].dims[0]
        nodes = rows_of_bytes(phases, channels, shuffle.output[0])
        position = list(graph.node).index(shuffle)
        for node in (shuffle, concat, *phases):
            graph.node.remove(node)
        for node in reversed(nodes):
            graph.node.insert(position - len(phases) - 1, node)


def rows_of_bytes(
    phases: Sequence[onnx.NodeProto], channels: int, name: str
) -> list[onnx.NodeProto]:
    """Make the nodes that compute `name` [B,C,2h,2w] by copying whole rows of channels.

    `phases` dequantise four uint8 tensors [B,C,h,w]: even and odd columns of even rows, then of odd
    rows.  Channels of two columns side by side are [B,h,w,2C]; two rows of those, [B,h,2w,2C], lie
    in memory as [B,2h,2w,C].
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
