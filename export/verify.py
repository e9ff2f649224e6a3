"""Compare the graphs, run by ONNX Runtime on the CPU, with the networks in PyTorch fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from export.bundle import StageAgreement, graph_file
from export.compare import Images, changed, grey_levels, psnr, relative_error
from export.graphs import Precision
from export.half import largest_magnitude
from export.modules import DecoderToImage, GeneratorStep
from lddgan.checkpoint import Model
from lddgan.errors import LddganError
from lddgan.networks.autoencoder import nearest_code
from lddgan.networks.layers import to_tokens
from lddgan.noise import Noise, sampler_noise
from lddgan.presets import Preset

BATCHES = (1, 2, 3)
SMALL_IMAGE = 64  # up to this size batch 7 is verified too
SEED = 0

STAGE_TOLERANCE = 1e-4  # of the range, fp32
CHAIN_TOLERANCE = 1e-3
LEVELS_TOLERANCE = 1  # uint8
# Rounding turns an error of e grey levels into a changed value with probability e, so a mean error
# of STAGE_TOLERANCE of the range changes this share of the values.
CHANGED_TOLERANCE = STAGE_TOLERANCE * 255
FLIPS_TOLERANCE = 1e-3  # share of VQ codes
PSNR_TOLERANCE = 40.0  # dB, fp16
HALF_STAGE_TOLERANCE = 2e-2  # of the range, fp16: 2^-11 through some fifty layers


class Run(NamedTuple):
    """What one side made of the same noise."""

    steps: list[NDArray[np.float32]]  # x_next of every call
    image: Images


class Stages(NamedTuple):
    """One side of the comparison: how it runs a step and the decoder."""

    step: Callable[..., NDArray[np.float32]]  # x, t, z, noise
    decode: Callable[[NDArray[np.float32]], Images]


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

    drawn = draw(model.preset, 1)
    half = Stages(stage("generator"), stage("decoder"))
    mine = run_chain(half, model.preset, drawn)
    true = run_chain(torch_stages(model), model.preset, drawn)
    # A flipped VQ code is counted apart: there the decoder is compared on the same latent.
    image = mine.image if model.autoencoder.is_kl else half.decode(true.steps[-1])
    return HalfCheck(max(largest), psnr(image, true.image))


def draw(preset: Preset, count: int) -> Noise:
    """The noise that verification uses."""
    return sampler_noise(
        SEED,
        0,
        count,
        latent_shape=preset.latent_shape,
        nz=preset.generator.nz,
        steps=preset.steps,
    )


def verify(
    model: Model, folder: Path, precision: Precision, half: HalfCheck | None = None
) -> StageAgreement:
    """Measure the agreement of the graphs in `folder` with `model` for several batch sizes."""
    small = model.preset.image_size <= SMALL_IMAGE
    batches = (*BATCHES, 7) if small else BATCHES
    ours, reference = onnx_stages(folder, precision), torch_stages(model)
    found = [_compare(model, ours, reference, batch) for batch in batches]
    return StageAgreement(
        batches=batches,
        generator_error=max(one["generator_error"] for one in found),
        decoder_levels=max(one["decoder_levels"] for one in found),
        decoder_changed=max(one["decoder_changed"] for one in found),
        decoder_psnr=min(one["decoder_psnr"] for one in found),
        chain_error=max(one["chain_error"] for one in found),
        chain_levels=max(one["chain_levels"] for one in found),
        chain_changed=max(one["chain_changed"] for one in found),
        chain_psnr=min(one["chain_psnr"] for one in found),
        code_flips=max(one["code_flips"] for one in found),
        fp16_largest=half.largest if half else None,
        fp16_psnr=half.psnr if half else None,
    )


def _compare(model: Model, ours: Stages, reference: Stages, batch: int) -> dict[str, Any]:
    """Each stage on the reference's own inputs, then the whole chain."""
    preset = model.preset
    drawn = draw(preset, batch)
    true = run_chain(reference, preset, drawn)
    mine = run_chain(ours, preset, drawn)
    inputs = [drawn.x_T, *true.steps[:-1]]
    steps = [ours.step(x, _t(preset, k), drawn.z[k], drawn.noise[k]) for k, x in enumerate(inputs)]
    decoded = ours.decode(true.steps[-1])
    return {
        "generator_error": max(map(relative_error, steps, true.steps)),
        "decoder_levels": grey_levels(decoded, true.image),
        "decoder_changed": changed(decoded, true.image),
        "decoder_psnr": psnr(decoded, true.image),
        "chain_error": relative_error(mine.steps[-1], true.steps[-1]),
        "chain_levels": grey_levels(mine.image, true.image),
        "chain_changed": changed(mine.image, true.image),
        "chain_psnr": psnr(mine.image, true.image),
        "code_flips": code_flips(model, mine.steps[-1], true.steps[-1]),
    }


def run_chain(stages: Stages, preset: Preset, drawn: Noise) -> Run:
    """T steps and the decoder."""
    x, steps = drawn.x_T, []
    for k in range(preset.steps):
        x = stages.step(x, _t(preset, k), drawn.z[k], drawn.noise[k])
        steps.append(x)
    return Run(steps, stages.decode(x))


def _t(preset: Preset, k: int) -> NDArray[np.int32]:
    return np.array([preset.steps - 1 - k], dtype=np.int32)


def code_flips(model: Model, a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Share of positions whose nearest code differs; 0 without a codebook."""
    quantize = model.autoencoder.quantize
    if quantize is None:
        return 0.0
    codes = [
        nearest_code(
            to_tokens(torch.from_numpy(x_0) * model.preset.scale_factor), quantize.embedding.weight
        )
        for x_0 in (a, b)
    ]
    return float((codes[0] != codes[1]).float().mean())


def refuse_disagreement(found: StageAgreement, precision: Precision) -> None:
    """Raise LddganError naming the first limit that `found` passes.

    Where VQ codes flip, images are compared by the decoder alone: one flip moves many pixels.  In
    fp16 the latents are rounded to about 1e-3, so flips are recorded and not limited.
    """
    if precision == "fp16":
        image_psnr = found.decoder_psnr if found.code_flips else found.chain_psnr
        limits = [
            ("generator error", found.generator_error, HALF_STAGE_TOLERANCE),
            ("image PSNR in dB", -image_psnr, -PSNR_TOLERANCE),
            (
                "image PSNR in dB at the graph's own dtypes",
                -(found.fp16_psnr or 0),
                -PSNR_TOLERANCE,
            ),
        ]
    else:
        limits = [
            ("generator error", found.generator_error, STAGE_TOLERANCE),
            ("decoder difference in grey levels", found.decoder_levels, LEVELS_TOLERANCE),
            ("share of changed decoder values", found.decoder_changed, CHANGED_TOLERANCE),
            ("error of x_0 after all steps", found.chain_error, CHAIN_TOLERANCE),
            ("share of VQ codes that differ", found.code_flips, FLIPS_TOLERANCE),
        ]
        if found.code_flips == 0:
            limits.append(("image difference in grey levels", found.chain_levels, LEVELS_TOLERANCE))
    for name, value, limit in limits:
        if not value <= limit:
            raise LddganError(
                f"the {precision} graphs disagree with PyTorch: {name} is {abs(value):.3g}, "
                f"the limit is {abs(limit):.3g}; nothing was published"
            )
