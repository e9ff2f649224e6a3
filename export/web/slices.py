"""Wide Splits of a graph as Slices: WebGPU limits the buffers that a shader binds."""

from __future__ import annotations

from itertools import accumulate, pairwise

import onnx
from onnx import helper, numpy_helper

BUFFERS = 8  # maxStorageBuffersPerShaderStage that every WebGPU device has; one is the input


def split_by_slices(model: onnx.ModelProto) -> None:
    """Put a Slice for each output of every Split that has more than BUFFERS - 1.

    The sizes of the outputs must be constants, as in every graph that we export (ONNX opset 17).
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes, unused = [], set()
    for node in graph.node:
        if node.op_type != "Split" or len(node.output) < BUFFERS:
            nodes.append(node)
            continue
        data, sizes = node.input
        unused.add(sizes)
        (axis,) = (attribute.i for attribute in node.attribute)
        bounds = accumulate(numpy_helper.to_array(constants[sizes]).tolist(), initial=0)
        for output, (start, end) in zip(node.output, pairwise(bounds), strict=True):
            names = [data]
            for what, value in (("start", start), ("end", end), ("axis", axis)):
                names.append(f"{output}.{what}")
                graph.initializer.append(
                    helper.make_tensor(names[-1], onnx.TensorProto.INT64, [1], [value])
                )
            nodes.append(helper.make_node("Slice", names, [output]))
    unused -= {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name not in unused]
    for field, values in ((graph.node, nodes), (graph.initializer, kept)):
        del field[:]
        field.extend(values)
    onnx.checker.check_model(model)
