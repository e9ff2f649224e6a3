"""Where Winograd's form pays: times of one 3x3 convolution, plain and rewritten, on a CPU.

`python -m bench.studies.winograd_shapes` prints the table that `export.rewrites.pays` follows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from torch import nn

from engine.backends.openvino import DEVICE, OPTIONS
from engine.backends.ort import open_session
from export.graphs import BATCH, GraphSpec, TensorSpec
from export.rewrites.winograd import WinogradConv
from export.to_onnx import export_graph

SHAPES: Final = (  # batch, channels in and out, size: convolutions of the three big models
    (1, 128, 128, 64),
    (1, 256, 256, 16),
    (1, 256, 256, 32),
    (1, 256, 256, 64),
    (1, 256, 256, 128),
    (1, 256, 128, 256),
    (1, 512, 256, 32),
    (1, 512, 256, 128),
    (1, 512, 512, 32),
    (1, 512, 512, 64),
    (8, 128, 128, 32),
    (8, 256, 256, 8),
    (8, 256, 256, 16),
)
RUNS: Final = 15  # after one that is not timed

Array = NDArray[np.float32]
Layer = Callable[[Array], Array]


def engines(module: nn.Module, x: Array, outputs: int) -> tuple[Layer, Layer]:
    """One layer in ONNX Runtime and in OpenVINO: [B,in,size,size] -> [B,outputs,size,size]."""
    batch, inputs, size = x.shape[:3]
    spec = GraphSpec(
        inputs=(TensorSpec(name="x", shape=(BATCH, inputs, size, size), dtype="float32"),),
        outputs=(TensorSpec(name="y", shape=(BATCH, outputs, size, size), dtype="float32"),),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        export_graph(module.eval(), spec, path)
        session = open_session(path, "cpu", "fp32")  # whose threads rest between runs
        core: Any = openvino.Core()
        model = core.read_model(path)
    model.reshape([batch, inputs, size, size])
    request = core.compile_model(model, DEVICE, OPTIONS).create_infer_request()
    return lambda x: session.run(None, {"x": x})[0], lambda x: request.infer([x])[0]


def milliseconds(layer: Layer, x: Array) -> float:
    """Median time of a run."""
    layer(x)
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        layer(x)
        times.append(time.perf_counter() - began)
    return median(times) * 1e3


def main() -> None:
    print("batch | in | out | size | ORT, ms | Winograd | OpenVINO, ms | Winograd | error")
    print("--:|--:|--:|--:|--:|--:|--:|--:|--:")
    for batch, inputs, outputs, size in SHAPES:
        torch.manual_seed(0)
        conv = nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)
        x = torch.nn.functional.silu(torch.randn(batch, inputs, size, size)).numpy()
        plain = engines(conv, x, outputs)
        rewritten = engines(WinogradConv(conv, size), x, outputs)
        times = [
            milliseconds(layer, x) for pair in zip(plain, rewritten, strict=True) for layer in pair
        ]
        true, made = plain[0](x), rewritten[0](x)
        error = np.abs(made - true).max() / np.abs(true).max()
        figures = " | ".join(f"{one:.2f}" for one in times)
        print(f"{batch} | {inputs} | {outputs} | {size} | {figures} | {error:.1e}")


if __name__ == "__main__":
    main()
