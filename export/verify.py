"""Compare the graphs, run by ONNX Runtime on the CPU, with the networks in PyTorch fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from export.agreement import (
    IMAGES,
    PSNR_TOLERANCE,
    Run,
    Stages,
    differences,
    joined,
    limits_of,
    passed_limit,
    run_alone,
    run_chain,
)
from export.bundle import StageAgreement, graph_file
from export.compare import Latents, psnr
from export.fp16 import largest_magnitude
from export.modules import DecoderToImage, GeneratorStep
from lddgan.checkpoint import Model
from lddgan.errors import LddganError
from lddgan.names import Precision
from lddgan.noise import draw
from lddgan.preset import Preset

BATCHES = (1, 2, 3)
SMALL_IMAGE = 64  # up to this size batch 7 is verified too, and int8 on all IMAGES
INT8_LARGE_IMAGES = 8  # PyTorch takes seconds for a 256x256 image


def torch_stages(model: Model) -> Stages:
    """The networks as published, in fp32."""
    generator = GeneratorStep(model.generator, model.preset)
    decoder = DecoderToImage(model.autoencoder, model.preset)

    def run(module: torch.nn.Module, *arrays: NDArray[Any]) -> Any:
        with torch.inference_mode():
            return module(*(torch.from_numpy(array) for array in arrays)).numpy()

    return Stages(
        lambda x, t, z, noise: run(generator, x, t, z, noise), lambda x_0: run(decoder, x_0)
    )


def onnx_stages(folder: Path, precision: Precision) -> Stages:
    """The graphs of a folder, on ONNX Runtime's CPU provider."""
    import onnxruntime

    def session(which: str) -> Any:
        return onnxruntime.InferenceSession(
            folder / graph_file(which, precision), providers=["CPUExecutionProvider"]
        )

    generator, decoder = session("generator"), session("decoder")
    return Stages(
        lambda x, t, z, noise: generator.run(None, {"x": x, "t": t, "z": z, "noise": noise})[0],
        lambda x_0: decoder.run(None, {"x_0": x_0})[0],
    )


class HalfCheck(NamedTuple):
    """One image through the torch modules in the fp16 graphs' own dtypes."""

    largest: float  # magnitude of any fp16 tensor
    psnr: float  # dB against fp32; for VQ, of the decoder alone


def check_half(model: Model, modules: Mapping[str, torch.nn.Module]) -> HalfCheck:
    """Run one image through `modules`, converted by `to_half`, and compare with fp32.

    Raises LddganError for NaN, Inf or a magnitude that fp16 cannot be trusted with.
    """
    largest = []

    def stage(which: str) -> Callable[..., Any]:
        def run(*arrays: NDArray[Any]) -> Any:
            inputs = [torch.from_numpy(array) for array in arrays]
            out, magnitude = largest_magnitude(which, lambda: modules[which](*inputs))
            largest.append(magnitude)
            return out.numpy()

        return run

    drawn = draw(model.preset, 0, 1)
    half = Stages(stage("generator"), stage("decoder"))
    mine = run_chain(half, model.preset, drawn)
    true = run_chain(torch_stages(model), model.preset, drawn)
    # A flipped VQ code is counted apart: there the decoder is compared on the same latent.
    image = half.decode(true.x_0) if model.preset.autoencoder.has_codes else mine.image
    return HalfCheck(max(largest), psnr(image, true.image))


def verify(
    model: Model, folder: Path, precision: Precision, half: HalfCheck | None = None
) -> StageAgreement:
    """Measure the agreement of the graphs in `folder` with `model` for several batch sizes."""
    preset, batches = model.preset, batches_of(model.preset, precision)
    ours, reference = onnx_stages(folder, precision), torch_stages(model)
    firsts = accumulate(batches[:-1], initial=0)
    parts = [_compare(preset, ours, reference, *part) for part in zip(firsts, batches, strict=True)]
    alone, chain, true = map(joined, zip(*parts, strict=True))
    return StageAgreement(
        **differences(alone, chain, true, code_flips(model, chain.x_0, true.x_0)).model_dump(),
        batches=batches,
        fp16_largest=half.largest if half else None,
        fp16_psnr=half.psnr if half else None,
    )


def batches_of(preset: Preset, precision: Precision) -> tuple[int, ...]:
    """Sizes of the batches that are verified, one after the other from image 0.

    For int8 the last makes them enough: in 8 bits it is a few images of many that come out wrong.
    """
    small = preset.image_size <= SMALL_IMAGE
    batches = (*BATCHES, 7) if small else BATCHES
    if precision != "int8":
        return batches
    images = IMAGES if small else INT8_LARGE_IMAGES
    return (*batches, images - sum(batches))


def _compare(
    preset: Preset, ours: Stages, reference: Stages, first: int, count: int
) -> tuple[Run, Run, Run]:
    """Our stages on the reference's own inputs, our whole chain, and the reference's."""
    drawn = draw(preset, first, count)
    true = run_chain(reference, preset, drawn)
    return run_alone(ours, preset, drawn, true), run_chain(ours, preset, drawn), true


def code_flips(model: Model, a: Latents, b: Latents) -> float:
    """Share of positions whose nearest code differs; 0 without a codebook. a, b [B,C,h,w]."""
    if not model.preset.autoencoder.has_codes:
        return 0.0
    return float(np.mean([codes(model, x) != codes(model, y) for x, y in zip(a, b, strict=True)]))


def codes(model: Model, x_0: Latents) -> NDArray[np.int64]:
    """Nearest code of every position of one latent [C,h,w]: int64 [1,h*w]."""
    found = model.codes(torch.from_numpy(x_0)[None])
    assert found is not None
    return found.numpy()


def refuse_disagreement(found: StageAgreement, precision: Precision) -> None:
    """Raise LddganError naming the first limit that `found` passes."""
    limits = limits_of(found, precision)
    if precision == "fp16":
        limits.append(
            (
                "image PSNR in dB at the graph's own dtypes",
                -(found.fp16_psnr or 0),
                -PSNR_TOLERANCE,
            )
        )
    passed = passed_limit(limits)
    if passed is not None:
        told = "; --accept-psnr takes a lower one" if precision == "int8" else ""
        raise LddganError(
            f"the {precision} graphs disagree with PyTorch: {passed}; nothing was published{told}"
        )
