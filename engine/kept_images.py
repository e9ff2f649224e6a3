"""Images in an .npz: how they were made, and whether another engine makes the same ones."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ValidationError

from engine.backend import Images
from engine.sampler import Sampler, check_request
from engine.verification import REMEDIES
from export.agreement import (
    BF16_PSNR,
    INT8_PSNR,
    LEVELS_TOLERANCE,
    PSNR_TOLERANCE,
    Limit,
    any_of_one_value,
    changed,
    grey_levels,
    passed_limit,
    psnr,
)
from export.bundle import CHECKPOINT, Bundle
from lddgan.errors import BadInput, LddganError, why_invalid
from lddgan.frozen import Frozen
from lddgan.names import Precision
from lddgan.preset import Preset

LEAST_PSNR: Final[dict[Precision, float]] = {  # dB
    "fp32": PSNR_TOLERANCE,
    "fp16": PSNR_TOLERANCE,
    "bf16": BF16_PSNR,
    "int8": INT8_PSNR,
}


class Origin(Frozen):
    """How the images of a file were made."""

    dataset: str  # the preset's name
    model: str  # sha256 of the checkpoint's file
    seed: int
    first: int  # index of the first image
    engine: str
    precision: Precision
    where: str
    cuda_graph: bool | None  # whether the whole was one launch; None on the CPU
    date: str | None = None  # ISO 8601, UTC, of earlier files: the same images are the same bytes

    @classmethod
    def of(cls, sampler: Sampler, model: str, seed: int, first: int) -> Origin:
        backend = sampler.backend
        return cls(
            dataset=sampler.preset.name,
            model=model,
            seed=seed,
            first=first,
            engine=backend.name,
            precision=backend.precision,
            where=backend.where,
            cuda_graph=backend.captures if backend.device == "cuda" else None,
        )


class ImagesVerified(Frozen):
    """Images of another process beside an engine's, on the same noise.

    Only images are compared: what a row shows of a verification is named as in `Verification`.
    """

    images: int
    origin: Origin
    reference: str  # the engine, its precision and device
    date: str  # ISO 8601, UTC
    chain_levels: int  # largest difference, in grey levels
    chain_changed: float  # share of the uint8 values that differ
    chain_psnr: float  # dB
    over_1: float  # share of the values that are further off than 1 grey level
    over_2: float
    why_failed: str | None


def read_images(path: Path, bundle: Bundle) -> tuple[Images, Origin]:
    """Read uint8 [N,H,W,3] of an .npz that `lddgan sample` wrote, and how they were made.

    Raises BadInput for any other file, or if another model than the bundle's made the images.
    """
    try:
        with zipfile.ZipFile(path) as _, np.load(path, allow_pickle=False) as held:
            images, said = held["images"], str(held["origin"])
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error
    except KeyError as error:
        raise BadInput(
            f"{path} does not say how its images were made; `lddgan sample --out x.npz` does"
        ) from error
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise BadInput(f"{path} is not an .npz of images: {error}") from error
    try:
        origin = Origin.model_validate_json(said)
    except ValidationError as error:
        raise BadInput(f"{path}: {why_invalid(error, 'its origin')}") from error
    ours = bundle.manifest.files[CHECKPOINT].sha256
    if origin.model != ours:
        raise BadInput(
            f"{path} was made of another model: checkpoint {origin.model[:12]}..., and "
            f"{bundle.folder} holds {ours[:12]}..."
        )
    height, width = bundle.preset.image_shape[1:]
    if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3) or not len(images):
        raise BadInput(
            f"{path} holds {images.dtype} {list(images.shape)}, and must hold uint8 "
            f"[N,{height},{width},3] of {origin.dataset}"
        )
    check_request(len(images), origin.seed, origin.first, None)
    return images, origin


def verify_images(images: Images, origin: Origin, sampler: Sampler) -> ImagesVerified:
    """Make the images again with an open engine of the same model, and compare."""
    true = sampler.sample(len(images), origin.seed, origin.first)
    found = ImagesVerified(
        images=len(images),
        origin=origin,
        reference=sampler.description,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        chain_levels=grey_levels(images, true),
        chain_changed=changed(images, true),
        chain_psnr=psnr(images, true),
        over_1=changed(images, true, 1),
        over_2=changed(images, true, 2),
        why_failed=None,
    )
    wrong = "an image is of one value" if any_of_one_value(images, sampler.preset) else None
    wrong = wrong or passed_limit(limits(found, sampler.preset))
    why = f"{wrong}; {REMEDIES[origin.precision]}" if wrong else None
    return found.model_copy(update={"why_failed": why})


def limits(found: ImagesVerified, preset: Preset) -> Sequence[Limit]:
    """The limits for images of a precision.

    One VQ code that flips moves many pixels, and images do not show that one did. So a VQ model is
    held to less than `export.agreement.limits_of` asks.
    """
    of_vq, precision = preset.autoencoder.has_codes, found.origin.precision
    least = BF16_PSNR if of_vq and precision == "fp16" else LEAST_PSNR[precision]
    asked = [("image PSNR in dB", -found.chain_psnr, -least)]
    if precision == "fp32" and not of_vq:
        asked.append(("image difference in grey levels", found.chain_levels, LEVELS_TOLERANCE))
    return asked


def refuse_images(found: ImagesVerified) -> None:
    """Raise LddganError for images that have not passed."""
    if found.why_failed is not None:
        one = found.origin
        raise LddganError(
            f"the images that {one.engine} {one.precision} on {one.where} made are not those of "
            f"{found.reference}: {found.why_failed}"
        )


def in_words(found: ImagesVerified) -> str:
    """The figures and the verdict in a sentence."""
    one = found.origin
    made = f"{one.where}, {one.date}" if one.date else one.where
    return (
        f"{found.images} images of seed {one.seed}, made by {one.engine} {one.precision} on "
        f"{made}\nagainst {found.reference}: at most {found.chain_levels} grey "
        f"levels, {found.chain_changed:.4%} of the values differ ({found.over_1:.4%} by more than "
        f"1, {found.over_2:.4%} by more than 2), PSNR {found.chain_psnr:.1f} dB\n"
        + ("passed" if found.why_failed is None else f"failed: {found.why_failed}")
    )
