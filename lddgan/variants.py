"""Presets of one's own: another image size, another loss, single values changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from lddgan.errors import BadInput, why_invalid
from lddgan.names import Loss, Regulariser
from lddgan.presets import Preset

CODES: Final = 8192  # of a codec that becomes VQ: as many as latent diffusion's f = 4 has


def with_values(preset: Preset, changes: Mapping[str, Any]) -> Preset:
    """`preset` with other values, "generator.nf" naming nf of the generator.

    Raises BadInput for a name that there is not, or values that do not fit together.
    """
    values, known = preset.model_dump(), names(preset)
    for name, value in changes.items():
        if name not in known:
            raise BadInput(f"there is no setting '{name}'; there are {', '.join(known)}")
        section, _, leaf = name.rpartition(".")
        (values[section] if section else values)[leaf] = value
    try:
        return Preset.model_validate(values)
    except ValidationError as error:
        raise BadInput(why_invalid(error, preset.name)) from error


def names(preset: Preset) -> list[str]:
    """What can be set."""
    found = []
    for section, value in preset.model_dump(exclude={"name", "paper"}).items():
        leaves = [f"{section}.{leaf}" for leaf in value] if isinstance(value, dict) else [section]
        found += leaves
    return found


def parsed(settings: Sequence[str]) -> dict[str, Any]:
    """["generator.nf=32"] -> {"generator.nf": 32}; values are JSON, or else text."""
    changes = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise BadInput(f"'{setting}' is no setting; write generator.nf=32")
        try:
            changes[name] = json.loads(text)
        except json.JSONDecodeError:
            changes[name] = text
    return changes


def resized(preset: Preset, image_size: int) -> Preset:
    """`preset` for images of another size. Raises BadInput if its networks cannot halve it."""
    if image_size < 1 or image_size % preset.downsampling:
        raise BadInput(
            f"images of {image_size}x{image_size} cannot be encoded: the autoencoder divides the "
            f"side by {preset.downsampling}"
        )
    latent_size = image_size // preset.downsampling
    return with_values(preset, {"image_size": image_size, "latent_size": latent_size})


def regularised(preset: Preset, kind: Regulariser) -> Preset:
    """`preset` with another regularisation of the latents (Table 7)."""
    codes = (preset.autoencoder.codes or CODES) if kind == "vq" else 0
    return with_values(preset, {"autoencoder.kind": kind, "autoencoder.codes": codes})


def with_loss(preset: Preset, loss: Loss, delta: float | None) -> Preset:
    """`preset` with a loss of the generator (Table 6); `delta` of Weighted Learning if given.

    Raises BadInput for a delta where the weight does not depend on one.
    """
    if delta is not None and loss != "weighted":
        raise BadInput(f"delta belongs to the loss 'weighted', not to '{loss}'")
    own = preset.training.delta if delta is None else delta
    if loss == "weighted" and own is None:
        raise BadInput(f"the loss 'weighted' needs --delta: {preset.name} has none of its own")
    return with_values(
        preset,
        {
            "training.reconstruction": loss != "adversarial",
            "training.delta": own if loss == "weighted" else None,
        },
    )


def loss_of(preset: Preset) -> Loss:
    """The loss of the generator that a preset has."""
    if not preset.training.reconstruction:
        return "adversarial"
    return "reconstruction" if preset.training.delta is None else "weighted"
