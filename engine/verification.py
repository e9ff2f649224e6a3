"""The record of a verification, and the rule that judges it. Needs no torch."""

from __future__ import annotations

from typing import Final

from export.agreement import LEVELS_TOLERANCE, Differences, limits_of, passed_limit
from lddgan.errors import LddganError
from lddgan.frozen import Frozen
from lddgan.names import Precision

REMEDIES: Final[dict[Precision, str]] = {
    "fp16": "use --precision fp32, or --engine fused --precision bf16",
    "bf16": "use --precision fp32",
    "fp32": "export the bundle again, or use another --engine",
    "int8": "use --precision fp32",
}


class LatentError(Frozen):
    """|difference| of latents / largest |latent| of the reference."""

    largest: float
    mean: float


class Verification(Differences):
    """An engine beside PyTorch fp32, on the same noise."""

    images: int
    seed: int
    engine: str
    precision: Precision
    where: str
    reference: str  # PyTorch, its version and device
    date: str  # ISO 8601, UTC
    calls: tuple[LatentError, ...]  # every call of the generator, on the reference's inputs
    decoder_mean: float  # grey levels
    latents: LatentError  # x_0 of the whole chain
    over_1: float  # share of the chain's uint8 values that are further off than 1 grey level
    over_2: float
    finite: bool  # no NaN or Inf, no image of one value
    noise_identical: bool  # what the engine draws is lddgan.noise, bit for bit
    drawn_levels: int  # between images of the noise it draws and of the same noise given
    why_failed: str | None

    @property
    def passed(self) -> bool:
        return self.why_failed is None


def why_failed(found: Verification) -> str | None:
    """The first thing that is wrong, and what to do about it. Returns None if nothing is."""
    if not found.noise_identical:
        return "the noise it draws is not that of lddgan.noise; use another --engine"
    wrong = None if found.finite else "it gives NaN, Inf or an image of one value"
    wrong = wrong or passed_limit(
        [
            *limits_of(found, found.precision),
            ("drawn against given noise in grey levels", found.drawn_levels, LEVELS_TOLERANCE),
        ]
    )
    return f"{wrong}; {REMEDIES[found.precision]}" if wrong else None


def refuse(found: Verification) -> None:
    """Raise LddganError if an engine failed verification."""
    if found.why_failed is not None:
        raise LddganError(
            f"{found.engine} {found.precision} on {found.where} does not make PyTorch's images: "
            f"{found.why_failed}"
        )
