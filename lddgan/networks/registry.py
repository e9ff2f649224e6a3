"""The kinds of networks, a line each. Needs no torch: a network is imported when it is built."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import BeforeValidator

from lddgan.frozen import Frozen
from lddgan.networks import configs

if TYPE_CHECKING:
    from lddgan.preset import Preset


class Kind(NamedTuple):
    config: type[Frozen]
    network: str  # module and class; an instance is made from a preset


NETWORKS: Final = "lddgan.networks"
GENERATORS: Final = {
    "ncsnpp": Kind(configs.NcsnppConfig, f"{NETWORKS}.ncsnpp.Ncsnpp"),
    "wavelet-ncsnpp": Kind(configs.WaveletConfig, f"{NETWORKS}.wavelet.WaveletNcsnpp"),
    "u-vit": Kind(configs.UVitConfig, f"{NETWORKS}.vit.UVit"),
}
AUTOENCODERS: Final = {
    "kl": Kind(configs.KlConfig, f"{NETWORKS}.autoencoder.KlAutoencoder"),
    "vq": Kind(configs.VqConfig, f"{NETWORKS}.autoencoder.VqAutoencoder"),
    "none": Kind(configs.FreeConfig, f"{NETWORKS}.autoencoder.FreeAutoencoder"),
    "pixels": Kind(configs.PixelsConfig, f"{NETWORKS}.fixed.Pixels"),
    "haar": Kind(configs.HaarConfig, f"{NETWORKS}.fixed.HaarBands"),
}
DISCRIMINATORS: Final = {
    "small": Kind(configs.SmallConfig, f"{NETWORKS}.discriminator.Discriminator"),
    "large": Kind(configs.LargeConfig, f"{NETWORKS}.discriminator.Discriminator"),
}
PARTS: Final = {
    "generator": GENERATORS,
    "autoencoder": AUTOENCODERS,
    "discriminator": DISCRIMINATORS,
}


def by_kind(part: str) -> BeforeValidator:
    """Validator of a preset's field: makes the config of the `kind` that the values name."""
    kinds = PARTS[part]

    def choose(values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kind = values.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            raise ValueError(f"kind {kind!r} is unknown; there are {', '.join(kinds)}")
        return kinds[kind].config.model_validate(values)

    return BeforeValidator(choose)


def values_of_kind(part: str, values: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """`values` of a part's config as another kind has them: the shared ones, defaults, or None."""
    if not isinstance(kind, str) or kind not in PARTS[part]:
        return {**values, "kind": kind}  # refused when the preset is made
    fields = PARTS[part][kind].config.model_fields
    defaults = {name: None if of.is_required() else of.default for name, of in fields.items()}
    return defaults | {name: values[name] for name in fields if name in values} | {"kind": kind}


def create(part: str, preset: Preset) -> Any:
    """The "generator", "autoencoder" or "discriminator" of a preset, newly initialised."""
    module, _, name = PARTS[part][getattr(preset, part).kind].network.rpartition(".")
    return getattr(importlib.import_module(module), name)(preset)
