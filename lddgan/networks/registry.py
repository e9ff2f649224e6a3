"""The kinds of networks, a line each. Needs no torch: a network is imported when it is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lddgan.frozen import Frozen
from lddgan.networks import configs

if TYPE_CHECKING:
    from torch import nn

    from lddgan.networks.autoencoder import Autoencoder
    from lddgan.networks.discriminator import Discriminator
    from lddgan.networks.generator import Generator
    from lddgan.preset import Preset


class Kind(NamedTuple):
    """One kind of network."""

    config: type[Frozen]
    network: str  # module and class; an instance is made from a preset


NETWORKS: Final = "lddgan.networks"
GENERATORS: Final = {
    "ncsnpp": Kind(configs.NcsnppConfig, f"{NETWORKS}.generator.Generator"),
}
AUTOENCODERS: Final = {
    "kl": Kind(configs.KlConfig, f"{NETWORKS}.autoencoder.KlAutoencoder"),
    "vq": Kind(configs.VqConfig, f"{NETWORKS}.autoencoder.VqAutoencoder"),
    "none": Kind(configs.FreeConfig, f"{NETWORKS}.autoencoder.FreeAutoencoder"),
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


def chooser(kinds: Mapping[str, Kind]) -> Callable[[Any], Any]:
    """A validator of a preset's field: the config of the `kind` that the values name."""

    def choose(values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kind = values.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            raise ValueError(f"kind {kind!r} is unknown; there are {', '.join(kinds)}")
        return kinds[kind].config.model_validate(values)

    return choose


def values_of_kind(part: str, values: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """`values` of a part's config as another kind has them: shared ones kept, defaults added.

    An unknown kind keeps them all, and is refused when the preset is made.
    """
    if not isinstance(kind, str) or kind not in PARTS[part]:
        return {**values, "kind": kind}
    fields = PARTS[part][kind].config.model_fields
    defaults = {name: field.default for name, field in fields.items() if not field.is_required()}
    return defaults | {name: values[name] for name in fields if name in values} | {"kind": kind}


def create(part: str, preset: Preset) -> nn.Module:
    """The "generator", "autoencoder" or "discriminator" of a preset, newly initialised."""
    module, _, name = PARTS[part][getattr(preset, part).kind].network.rpartition(".")
    network: nn.Module = getattr(importlib.import_module(module), name)(preset)
    return network


def create_generator(preset: Preset) -> Generator:
    """The generator of a preset, newly initialised."""
    return create("generator", preset)  # type: ignore[return-value]


def create_autoencoder(preset: Preset) -> Autoencoder:
    """The autoencoder of a preset, newly initialised."""
    return create("autoencoder", preset)  # type: ignore[return-value]


def create_discriminator(preset: Preset) -> Discriminator:
    """The discriminator of a preset, newly initialised."""
    return create("discriminator", preset)  # type: ignore[return-value]
