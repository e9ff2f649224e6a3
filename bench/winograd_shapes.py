"""Where Winograd's form pays: times of one 3x3 convolution, plain and rewritten.

`python -m bench.winograd_shapes` prints the table that `export.rewrites.pays` follows.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import onnxruntime
import torch
from torch import nn

from export.graphs import BATCH, GraphSpec, TensorSpec
from export.rewrites.winograd import WinogradConv
from export.to_onnx import export_graph

SHAPES: Final = (  # batch, channels in and out, size: convolutions of the three big models
    (1, 128, 128, 64),
    (1, 256, 256, 32),
    (1, 256, 256, 64),
    (1, 256, 256, 128),
    (1, 512, 256, 32),
    (1, 512, 256, 128),
    (1, 512, 512, 32),
    (1, 512, 512, 64),
    (8, 256, 256, 8),
    (8, 256, 256, 16),
    (8, 256, 256, 32),
)
RUNS: Final = 15  # after one that is not timed


def session(
    module: nn.Module, channels: int, outputs: int, size: int
) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU for one layer: [B,channels,size,size] -> [B,outputs,size,size]."""
    spec = GraphSpec(
        inputs=(TensorSpec(name="x", shape=(BATCH, channels, size, size), dtype="float32"),),
        outputs=(TensorSpec(name="y", shape=(BATCH, outputs, size, size), dtype="float32"),),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        export_graph(module.eval(), spec, path)
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def milliseconds(layer: onnxruntime.InferenceSession, x: np.ndarray) -> float:
    """Median time of a run."""
    layer.run(None, {"x": x})
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        layer.run(None, {"x": x})
        times.append(time.perf_counter() - began)
    return median(times) * 1e3


def main() -> None:
    print("batch | in | out | size | convolution, ms | Winograd, ms | ratio | error of the range")
    print("---|---|---|---|---|---|---|---")
    for batch, inputs, outputs, size in SHAPES:
        torch.manual_seed(0)
        conv = nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)
        x = torch.nn.functional.silu(torch.randn(batch, inputs, size, size)).numpy()
        plain = session(conv, inputs, outputs, size)
        rewritten = session(WinogradConv(conv, size), inputs, outputs, size)
        before, after = milliseconds(plain, x), milliseconds(rewritten, x)
        true, made = plain.run(None, {"x": x})[0], rewritten.run(None, {"x": x})[0]
        error = np.abs(made - true).max() / np.abs(true).max()
        print(
            f"{batch} | {inputs} | {outputs} | {size} | {before:.2f} | {after:.2f} | "
            f"{before / after:.2f} | {error:.1e}"
        )


if __name__ == "__main__":
    main()
