"""Compare the graphs, run by ONNX Runtime on the CPU, with the networks in PyTorch fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.agreement import (
    IMAGES,
    PSNR_TOLERANCE,
    SEED,
    Latents,
    Run,
    Runner,
    differences,
    joined,
    limits_of,
    passed_limit,
    psnr,
    run_alone,
    run_chain,
)
from export.bundle import Agreement, graph_file
from export.fp16 import largest_magnitude
from export.graphs import generator_inputs
from export.modules import DecoderToImage, GeneratorStep
from lddgan.checkpoint import Model
from lddgan.errors import LddganError
from lddgan.files import utf8_name
from lddgan.names import Precision
from lddgan.noise import draw
from lddgan.preset import Preset

BATCHES = (1, 2, 3)
SMALL_IMAGE = 64  # up to this size batch 7 is verified too, and int8 on all IMAGES
INT8_LARGE_IMAGES = 8  # PyTorch takes seconds for a 256x256 image


def module_runner(
    modules: Mapping[str, nn.Module],
    watch: Callable[[str, Callable[[], Tensor]], Tensor] = lambda _, run: run(),
) -> Runner:
    """Run a generator and a decoder in PyTorch; `watch(which, run)` runs each call."""

    def call(which: str, inputs: Mapping[str, NDArray[Any]]) -> Any:
        tensors = [torch.from_numpy(array) for array in inputs.values()]
        with torch.no_grad():
            return watch(which, lambda: modules[which](*tensors)).numpy()

    return Runner(
        lambda *args: call("generator", generator_inputs(*args)),
        lambda x_0: call("decoder", {"x_0": x_0}),
    )


def torch_runner(model: Model) -> Runner:
    """Run the networks as published, in fp32."""
    generator = GeneratorStep(model.generator, model.preset)
    decoder = DecoderToImage(model.autoencoder, model.preset)
    return module_runner({"generator": generator, "decoder": decoder})


def onnx_runner(folder: Path, precision: Precision) -> Runner:
    """Run the graphs of a folder on ONNX Runtime's CPU provider."""
    import onnxruntime

    def opened(which: str) -> Any:
        with utf8_name(folder / graph_file(which, precision)) as name:
            return onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"])

    generator, decoder = opened("generator"), opened("decoder")
    return Runner(
        lambda *args: generator.run(None, generator_inputs(*args))[0],
        lambda x_0: decoder.run(None, {"x_0": x_0})[0],
    )


def check_half(model: Model, modules: Mapping[str, nn.Module]) -> dict[str, float]:
    """Run one image through `modules`, converted by `to_half`, and compare with fp32.

    Returns `fp16_largest` and `fp16_psnr` of an `Agreement`.
    Raises LddganError for NaN, Inf or a magnitude that fp16 cannot be trusted with.
    """
    largest = []

    def watch(which: str, run: Callable[[], Tensor]) -> Tensor:
        out, magnitude = largest_magnitude(which, run)
        largest.append(magnitude)
        return out

    noise = draw(model.preset, 0, 1, SEED)
    half = module_runner(modules, watch)
    ours, true = run_chain(half, noise), run_chain(torch_runner(model), noise)
    # A flipped VQ code is counted apart: there the decoder is compared on the same latent.
    image = half.decode(true.x_0) if model.preset.autoencoder.has_codes else ours.image
    return {"fp16_largest": max(largest), "fp16_psnr": psnr(image, true.image)}


def verify(model: Model, folder: Path, precision: Precision, **known: float | None) -> Agreement:
    """Measure how the graphs in `folder` agree with `model`, for several batch sizes.

    `known` are values of the Agreement that were found before.
    """
    batches = batches_of(model.preset, precision)
    ours, reference = onnx_runner(folder, precision), torch_runner(model)
    parts: list[tuple[Run, Run, Run]] = []
    for first, count in zip(accumulate(batches[:-1], initial=0), batches, strict=True):
        noise = draw(model.preset, first, count, SEED)
        true = run_chain(reference, noise)
        parts.append((run_alone(ours, noise, true), run_chain(ours, noise), true))
    alone, whole, true = map(joined, zip(*parts, strict=True))
    flips = code_flips(model, whole.x_0, true.x_0)
    found = differences(alone, whole, true, flips).model_dump()
    return Agreement.model_validate(found | known | {"batches": batches})


def batches_of(preset: Preset, precision: Precision) -> tuple[int, ...]:
    """Sizes of the batches that are verified, one after the other from image 0.

    int8 has a larger last one: in 8 bits it is a few images of many that come out wrong.
    """
    small = preset.image_size <= SMALL_IMAGE
    batches = (*BATCHES, 7) if small else BATCHES
    if precision != "int8":
        return batches
    return (*batches, (IMAGES if small else INT8_LARGE_IMAGES) - sum(batches))


def code_flips(model: Model, a: Latents, b: Latents) -> float:
    """Share of positions whose nearest code differs; 0 without a codebook. a, b [B,C,h,w]."""
    ours, true = ([model.codes(torch.from_numpy(x)[None]) for x in latents] for latents in (a, b))
    return float(np.mean([np.asarray(x != y) for x, y in zip(ours, true, strict=True)]))


def refuse_disagreement(found: Agreement, precision: Precision) -> None:
    """Raise LddganError naming the first limit that `found` passes."""
    limits = limits_of(found, precision)
    if precision == "fp16":
        dtypes = "image PSNR in dB at the graph's own dtypes"
        limits.append((dtypes, -(found.fp16_psnr or 0), -PSNR_TOLERANCE))
    passed = passed_limit(limits)
    if passed is not None:
        hint = "; --accept-psnr takes a lower one" if precision == "int8" else ""
        raise LddganError(
            f"the {precision} graphs disagree with PyTorch: {passed}; nothing was published{hint}"
        )
