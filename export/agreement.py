"""Two ways to compute the same images: run stage by stage, compared, judged. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from export.compare import Images, Latents, changed, grey_levels, psnr, relative_error
from lddgan.frozen import Frozen
from lddgan.names import Precision
from lddgan.noise import Noise
from lddgan.preset import Preset

SEED: Final = 0  # of the noise that is compared
IMAGES: Final = 64  # of that seed, by default

STAGE_TOLERANCE = 1e-4  # of the range, fp32
CHAIN_TOLERANCE = 1e-3
LEVELS_TOLERANCE = 1  # uint8
# Rounding turns an error of e grey levels into a changed value with probability e, so a mean error
# of STAGE_TOLERANCE of the range changes this share of the values.
CHANGED_TOLERANCE = STAGE_TOLERANCE * 255
FLIPS_TOLERANCE = 1e-3  # share of VQ codes
PSNR_TOLERANCE = 40.0  # dB, fp16
INT8_PSNR: Final = 32.0  # dB, unless an export accepts another
HALF_STAGE_TOLERANCE = 2e-2  # of the range, fp16: 2^-11 through some fifty layers
BF16_PSNR: Final = 30.0  # dB; one image in some dozens takes another turn on its way
BF16_STAGE_TOLERANCE = 8 * HALF_STAGE_TOLERANCE  # 2^-8

Limit = tuple[str, float, float]  # what, found, largest allowed


class Stages(NamedTuple):
    """How one side runs a step and the decoder, on arrays of the host."""

    step: Callable[..., Latents]  # x, t, z, noise
    decode: Callable[[Latents], Images]


class Run(NamedTuple):
    """What one side made of some noise."""

    steps: list[Latents]  # x_next of every call
    image: Images

    @property
    def x_0(self) -> Latents:
        return self.steps[-1]


class Differences(Frozen):
    """How far one side is from the reference, on the same noise."""

    model_config = ConfigDict(ser_json_inf_nan="strings")  # the PSNR of equal images is infinite

    generator_error: float  # largest |difference| of x_next / largest |x_next|, over every step
    decoder_levels: int  # largest difference of the decoder alone, in grey levels
    decoder_changed: float  # share of its uint8 values that differ
    decoder_psnr: float  # dB
    chain_error: float  # like generator_error, of x_0 after T steps
    chain_levels: int
    chain_changed: float
    chain_psnr: float  # dB, of the images; infinite if equal
    code_flips: float  # share of VQ codes that differ after the chain; 0 for KL
    # Of int8, from the export; None where it was not so.
    int8_accepted_psnr: float | None = None  # dB, the least, instead of INT8_PSNR
    int8_both_psnr: float | None = None  # dB with both graphs in 8 bits: too little

    @property
    def why_fp32(self) -> str | None:
        """Why the generator of an int8 bundle stayed in fp32, if that was measured."""
        if self.int8_both_psnr is None:
            return None
        both = f"{self.int8_both_psnr:.1f} dB"
        return f"the generator stays in fp32: with both graphs in 8 bits, images had {both}"


def run_chain(stages: Stages, preset: Preset, drawn: Noise) -> Run:
    """T steps and the decoder."""
    x, steps = drawn.x_T, []
    for k in range(preset.steps):
        x = stages.step(*call_inputs(preset, drawn, k, x))
        steps.append(x)
    return Run(steps, stages.decode(x))


def run_alone(stages: Stages, preset: Preset, drawn: Noise, true: Run) -> Run:
    """Every call and the decoder on the inputs they had in the reference's run `true`."""
    inputs = [drawn.x_T, *true.steps[:-1]]
    steps = [stages.step(*call_inputs(preset, drawn, k, x)) for k, x in enumerate(inputs)]
    return Run(steps, stages.decode(true.x_0))


def joined(runs: Sequence[Run]) -> Run:
    """Runs of the parts of a batch as one."""
    steps = [np.concatenate(parts) for parts in zip(*(run.steps for run in runs), strict=True)]
    return Run(steps, np.concatenate([run.image for run in runs]))


def differences(alone: Run, chain: Run, true: Run, code_flips: float) -> Differences:
    """Stages on the reference's own inputs (`alone`) and the whole chain, against the reference."""
    return Differences(
        generator_error=max(map(relative_error, alone.steps, true.steps)),
        decoder_levels=grey_levels(alone.image, true.image),
        decoder_changed=changed(alone.image, true.image),
        decoder_psnr=psnr(alone.image, true.image),
        chain_error=relative_error(chain.x_0, true.x_0),
        chain_levels=grey_levels(chain.image, true.image),
        chain_changed=changed(chain.image, true.image),
        chain_psnr=psnr(chain.image, true.image),
        code_flips=code_flips,
    )


def passed_limit(limits: Sequence[Limit]) -> str | None:
    """The first limit that is passed, in words; None if all are kept. NaN passes every limit."""
    for name, value, limit in limits:
        if not value <= limit:
            return f"{name} is {abs(value):.3g}, the limit is {abs(limit):.3g}"
    return None


def limits_of(found: Differences, precision: Precision) -> list[Limit]:
    """What is asked of a precision.

    Where VQ codes flip, images are compared by the decoder alone: one flip moves many pixels.  In
    fp16 the latents are rounded to about 1e-3, in bf16 and int8 to 1e-2, so flips are recorded and
    not limited.
    """
    image_psnr = found.decoder_psnr if found.code_flips else found.chain_psnr
    if precision == "int8":
        accepted = found.int8_accepted_psnr
        least = INT8_PSNR if accepted is None else accepted
        return [("image PSNR in dB", -image_psnr, -least)]
    if precision == "fp16":
        return [
            ("generator error", found.generator_error, HALF_STAGE_TOLERANCE),
            ("image PSNR in dB", -image_psnr, -PSNR_TOLERANCE),
        ]
    if precision == "bf16":
        return [
            ("generator error", found.generator_error, BF16_STAGE_TOLERANCE),
            ("decoder PSNR in dB", -found.decoder_psnr, -PSNR_TOLERANCE),
            ("image PSNR in dB", -image_psnr, -BF16_PSNR),
        ]
    limits: list[Limit] = [
        ("generator error", found.generator_error, STAGE_TOLERANCE),
        ("decoder difference in grey levels", found.decoder_levels, LEVELS_TOLERANCE),
        ("share of changed decoder values", found.decoder_changed, CHANGED_TOLERANCE),
        ("error of x_0 after all steps", found.chain_error, CHAIN_TOLERANCE),
        ("share of VQ codes that differ", found.code_flips, FLIPS_TOLERANCE),
    ]
    if found.code_flips == 0:
        limits.append(("image difference in grey levels", found.chain_levels, LEVELS_TOLERANCE))
    return limits


def call_inputs(
    preset: Preset, drawn: Noise, k: int, x: Latents
) -> tuple[Latents, NDArray[np.int32], NDArray[Any], Latents]:
    """What the generator is given in call k: x, t, z, noise."""
    t = np.array([preset.steps - 1 - k], dtype=np.int32)
    return x, t, drawn.z[k], drawn.noise[k]
