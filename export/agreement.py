"""Two ways to compute the same images: how far they are apart, and what is allowed. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lddgan.diffusion import chain
from lddgan.frozen import Frozen
from lddgan.names import Precision
from lddgan.noise import Noise
from lddgan.preset import Preset

Images = NDArray[np.uint8]  # [B,H,W,3]
Latents = NDArray[np.float32]  # [B,C,h,w]

SEED: Final = 0  # of the noise that is compared
IMAGES: Final = 64  # of that seed, by default

GRAPH_TOLERANCE = 1e-4  # of the range, for one graph in fp32
CHAIN_TOLERANCE = 1e-3  # of the range, for x_0 after T steps
LEVELS_TOLERANCE = 1  # grey levels
# Rounding turns an error of e grey levels into a changed value with probability e, so a mean error
# of GRAPH_TOLERANCE of the range changes this share of the values.
CHANGED_TOLERANCE = GRAPH_TOLERANCE * 255
FLIPS_TOLERANCE = 1e-3  # share of VQ codes
PSNR_TOLERANCE = 40.0  # dB, fp16
INT8_PSNR: Final = 32.0  # dB, unless an export accepts another
HALF_GRAPH_TOLERANCE = 2e-2  # of the range, fp16: 2^-11 through some fifty layers
BF16_PSNR: Final = 30.0  # dB; one image in some dozens comes out different
BF16_GRAPH_TOLERANCE = 8 * HALF_GRAPH_TOLERANCE  # bf16 rounds at 2^-8


class Runner(NamedTuple):
    """One way to run the two networks, on arrays of the host."""

    step: Callable[[Latents, int, Any, Latents], Latents]  # x, t, z, noise -> x_next
    decode: Callable[[Latents], Images]


class Run(NamedTuple):
    """What a runner made of some noise."""

    steps: list[Latents]  # x_next of every call
    image: Images

    @property
    def x_0(self) -> Latents:
        return self.steps[-1]


def run_chain(runner: Runner, noise: Noise) -> Run:
    """Run T steps and the decoder."""
    steps = list(chain(runner.step, noise.x_T, [*noise.z], [*noise.noise]))
    return Run(steps, runner.decode(steps[-1]))


def run_alone(runner: Runner, noise: Noise, true: Run) -> Run:
    """Run every call and the decoder on the inputs they had in the reference's run `true`."""
    given = [noise.x_T, *true.steps[:-1]]
    last = len(given) - 1  # t of the first call
    steps = [runner.step(x, last - k, noise.z[k], noise.noise[k]) for k, x in enumerate(given)]
    return Run(steps, runner.decode(true.x_0))


def joined(runs: Sequence[Run]) -> Run:
    """Join runs of the parts of a batch."""
    steps = [np.concatenate(parts) for parts in zip(*(run.steps for run in runs), strict=True)]
    return Run(steps, np.concatenate([run.image for run in runs]))


# ---- how far two results are apart ----


def relative_error(a: Latents, b: Latents) -> float:
    """Largest |a - b| / largest |b|; infinite if a is not finite."""
    return float(np.nan_to_num(np.abs(a - b).max() / np.abs(b).max(), nan=np.inf, posinf=np.inf))


def mean_error(a: Latents, b: Latents) -> float:
    """Mean |a - b| / largest |b|; infinite if a is not finite."""
    error = np.abs(a - b).mean(dtype=np.float64) / np.abs(b).max()
    return float(np.nan_to_num(error, nan=np.inf, posinf=np.inf))


def _levels(a: Images, b: Images) -> NDArray[np.int16]:
    return np.abs(a.astype(np.int16) - b.astype(np.int16))


def grey_levels(a: Images, b: Images) -> int:
    """Largest difference of two uint8 images."""
    return int(_levels(a, b).max())


def mean_levels(a: Images, b: Images) -> float:
    """Mean difference of two uint8 images, in grey levels."""
    return float(_levels(a, b).mean(dtype=np.float64))


def changed(a: Images, b: Images, levels: int = 0) -> float:
    """Share of values that differ by more than `levels`."""
    return float((_levels(a, b) > levels).mean())


def psnr(a: Images, b: Images) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    mse = float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def is_sound(x_0: Latents, images: Images, preset: Preset) -> bool:
    """Whether latents are finite and no decoder made NaN of them."""
    return bool(np.isfinite(x_0).all()) and not any_of_one_value(images, preset)


def any_of_one_value(images: Images, preset: Preset) -> bool:
    """Whether all values of an image are the same: what NaN becomes in a decoder with layers."""
    if not preset.autoencoder.learned:
        return False
    spaced = images[:, ::8, ::8]  # fast, as a GPU waits: an image that varies here needs no more
    alike = images[spaced.min(axis=(1, 2, 3)) == spaced.max(axis=(1, 2, 3))]
    return bool((alike.min(axis=(1, 2, 3)) == alike.max(axis=(1, 2, 3))).any())


class Differences(Frozen):
    """How far a run is from the reference's, on the same noise."""

    generator_error: float  # largest |difference| of x_next / largest |x_next|, over every step
    decoder_levels: int  # largest difference of the decoder alone, in grey levels
    decoder_changed: float  # share of its uint8 values that differ
    decoder_psnr: float  # dB
    chain_error: float  # like generator_error, of x_0 after T steps
    chain_levels: int
    chain_changed: float
    chain_psnr: float  # dB, of the images; infinite if equal
    code_flips: float  # share of VQ codes that differ after the chain; 0 for KL
    # Of int8, from the export; None if that did not happen.
    int8_accepted_psnr: float | None = None  # the lowest PSNR in dB, instead of INT8_PSNR
    int8_both_psnr: float | None = None  # dB with both graphs in 8 bits: too low

    @property
    def why_fp32(self) -> str | None:
        """Why the generator of an int8 bundle stayed in fp32, if that was measured."""
        if self.int8_both_psnr is None:
            return None
        both = f"{self.int8_both_psnr:.1f} dB"
        return f"the generator stays in fp32: with both graphs in 8 bits, images had {both}"


def differences(alone: Run, whole: Run, true: Run, code_flips: float) -> Differences:
    """Compare with the reference's run `true`: each graph on its inputs, and the whole chain."""
    return Differences(
        generator_error=max(map(relative_error, alone.steps, true.steps)),
        decoder_levels=grey_levels(alone.image, true.image),
        decoder_changed=changed(alone.image, true.image),
        decoder_psnr=psnr(alone.image, true.image),
        chain_error=relative_error(whole.x_0, true.x_0),
        chain_levels=grey_levels(whole.image, true.image),
        chain_changed=changed(whole.image, true.image),
        chain_psnr=psnr(whole.image, true.image),
        code_flips=code_flips,
    )


# ---- what is allowed ----

Limit = tuple[str, float, float]  # name, value found, largest allowed


def passed_limit(limits: Sequence[Limit]) -> str | None:
    """Describe the first limit that is passed; None if all are kept. NaN passes every limit."""
    for name, value, limit in limits:
        if not value <= limit:
            return f"{name} is {abs(value):.3g}, the limit is {abs(limit):.3g}"
    return None


def limits_of(found: Differences, precision: Precision) -> list[Limit]:
    """List the limits of a precision.

    One flipped VQ code moves many pixels, so with flips the decoder alone is compared.  fp16 rounds
    latents to about 1e-3, bf16 and int8 to 1e-2: their flips are recorded and not limited.
    """
    image_psnr = found.decoder_psnr if found.code_flips else found.chain_psnr
    if precision == "int8":
        accepted = found.int8_accepted_psnr
        least = INT8_PSNR if accepted is None else accepted
        return [("image PSNR in dB", -image_psnr, -least)]
    if precision == "fp16":
        return [
            ("generator error", found.generator_error, HALF_GRAPH_TOLERANCE),
            ("image PSNR in dB", -image_psnr, -PSNR_TOLERANCE),
        ]
    if precision == "bf16":
        return [
            ("generator error", found.generator_error, BF16_GRAPH_TOLERANCE),
            ("decoder PSNR in dB", -found.decoder_psnr, -PSNR_TOLERANCE),
            ("image PSNR in dB", -image_psnr, -BF16_PSNR),
        ]
    limits: list[Limit] = [
        ("generator error", found.generator_error, GRAPH_TOLERANCE),
        ("decoder difference in grey levels", found.decoder_levels, LEVELS_TOLERANCE),
        ("share of changed decoder values", found.decoder_changed, CHANGED_TOLERANCE),
        ("error of x_0 after all steps", found.chain_error, CHAIN_TOLERANCE),
        ("share of VQ codes that differ", found.code_flips, FLIPS_TOLERANCE),
    ]
    if found.code_flips == 0:
        limits.append(("image difference in grey levels", found.chain_levels, LEVELS_TOLERANCE))
    return limits
