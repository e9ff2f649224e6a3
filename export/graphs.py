"""The one table of the two graphs' tensors: names, shapes and dtypes.

Export, verification, buffers, TensorRT profiles and sample inputs derive from it.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lddgan.frozen import Frozen
from lddgan.names import FLOATS, PRECISIONS, Precision, Wanted
from lddgan.preset import Preset

BATCH: Final = "B"  # the dynamic dimension
MAX_BATCH = 127  # of any model; at 128 a 256-channel 256x256 tensor passes LARGEST_TENSOR
LARGEST_TENSOR = 2**31 - 1  # elements: kernels on a GPU count in 31 bits
OPSET = 17  # the newest that TensorRT 8.6 reads


def most_images(preset: Preset, largest: int = LARGEST_TENSOR) -> int:
    """The largest batch, 1 to MAX_BATCH, in which no tensor passes `largest` elements."""
    return max(1, min(MAX_BATCH, largest // preset.largest_activation))


def precisions_of(wanted: Wanted) -> tuple[Precision, ...]:
    """The precisions of `--precision`: one of them, "both" floats, "all", or "none"."""
    if wanted == "none":
        return ()
    if wanted == "both":
        return FLOATS
    return PRECISIONS if wanted == "all" else (wanted,)


class TensorSpec(Frozen):
    """One input or output; "B" in a shape is the batch."""

    name: str
    shape: tuple[int | Literal["B"], ...]
    dtype: Literal["float32", "int32", "uint8"]


class GraphSpec(Frozen):
    """Inputs and outputs of one graph, in their order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def _f32(name: str, *shape: int | Literal["B"]) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype="float32")


def graph_specs(preset: Preset) -> dict[str, GraphSpec]:
    """The generator and the decoder graph of a preset."""
    latent = preset.latent_shape
    _, height, width = preset.image_shape
    return {
        "generator": GraphSpec(
            inputs=(
                _f32("x", BATCH, *latent),
                TensorSpec(name="t", shape=(1,), dtype="int32"),
                _f32("z", BATCH, preset.generator.nz),
                _f32("noise", BATCH, *latent),
            ),
            outputs=(_f32("x_next", BATCH, *latent),),
        ),
        "decoder": GraphSpec(
            inputs=(_f32("x_0", BATCH, *latent),),
            outputs=(TensorSpec(name="image", shape=(BATCH, height, width, 3), dtype="uint8"),),
        ),
    }


def generator_inputs(
    x: NDArray[Any], t: int, z: NDArray[Any], noise: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """One call's inputs of the generator graph by name, in its order."""
    return {"x": x, "t": np.array([t], np.int32), "z": z, "noise": noise}
