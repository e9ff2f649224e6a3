"""A torch module -> an ONNX file with the names, shapes and dtypes of its GraphSpec."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.export import Dim

from export.graphs import BATCH, OPSET, GraphSpec
from export.modules import example

EXPORTER_OPSET = 18  # the oldest that torch's exporter writes
ADDED = {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"}  # in opset 18; opset 17's meaning


def export_graph(module: nn.Module, spec: GraphSpec, path: Path, most: int) -> None:
    """Write `module` to `path`, weights inside, batch dynamic over 1..`most`, in opset 17.

    The exporter writes opset 18.  Its new operators and forms are not used, which the checker
    proves: raises `onnx.checker.ValidationError` otherwise.
    """
    batch = Dim("batch", min=1, max=max(most, 2))  # torch's Dim has two values at least
    shapes = tuple({0: batch} if tensor.shape[0] == BATCH else {} for tensor in spec.inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            tuple(example(tensor) for tensor in spec.inputs),
            dynamo=True,
            opset_version=EXPORTER_OPSET,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    interleave_by_depth_to_space(model.graph)
    tidy(model, spec)
    declare_opset(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def interleave_by_depth_to_space(graph: onnx.GraphProto) -> None:
    """Replace Reshape, Transpose, Reshape by the DepthToSpace that equals them, in place.

    The exporter makes the three of `interleaved` in lddgan/networks/haar.py; DepthToSpace
    passes over memory once instead of twice.
    """
    makes = {name: node for node in graph.node for name in node.output}
    reads = {name: node for node in graph.node for name in node.input}
    for transpose in [node for node in graph.node if node.op_type == "Transpose"]:
        if list(transpose.attribute[0].ints) != [0, 3, 4, 1, 5, 2]:  # [B,2,2,C,h,w] interleaved
            continue
        split, join = makes[transpose.input[0]], reads[transpose.output[0]]
        assert split.op_type == join.op_type == "Reshape"
        join.CopyFrom(
            onnx.helper.make_node(
                "DepthToSpace", split.input[:1], join.output, join.name, blocksize=2, mode="DCR"
            )
        )
        graph.node.remove(split)
        graph.node.remove(transpose)
    used = {name for node in graph.node for name in node.input}
    for weight in [weight for weight in graph.initializer if weight.name not in used]:
        graph.initializer.remove(weight)  # a shape of one of the Reshapes


def declare_opset(model: onnx.ModelProto) -> None:
    """Declare opset 17, dropping attributes that opset 18 added and whose values change nothing."""
    (main,) = model.opset_import
    assert (main.domain, main.version) == ("", EXPORTER_OPSET)
    main.version = OPSET
    for node in model.graph.node:
        for attribute in list(node.attribute):
            if ADDED.get(attribute.name) == onnx.helper.get_attribute_value(attribute):
                node.attribute.remove(attribute)


def tidy(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Drop the exporter's notes (stack traces, paths) and name the batch dimension "B"."""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    for values, tensors in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            assert value.name == tensor.name, (value.name, tensor.name)
            elem = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
            assert value.type.tensor_type.elem_type == elem, tensor.name
            value.CopyFrom(onnx.helper.make_tensor_value_info(tensor.name, elem, tensor.shape))
