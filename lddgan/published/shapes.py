"""Whose network a state dict holds, by the names and shapes of its tensors.

A few numbers, which may differ between runs of the same code, are read off the file.  With them the
shapes are those of the preset's network, or of another data set's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lddgan.checkpoint import shapes_of
from lddgan.preset import Preset, differences, with_values
from lddgan.presets import PRESETS

Shapes = Mapping[str, tuple[int, ...]]
Part = Literal["generator", "autoencoder"]


@dataclass(frozen=True)
class Family:
    """How the published files of one network are recognised."""

    part: Part
    kinds: tuple[str, ...]  # in the network registry, that these files can fill
    roots: frozenset[str]  # first parts of the names of its tensors
    own_numbers: Callable[[Shapes, Preset], dict[str, int]]  # which a file may have of its own

    def holds(self, names: Iterable[str]) -> bool:
        return not self.roots.isdisjoint(name.split(".")[0] for name in names)

    def variant(self, preset: Preset, shapes: Shapes) -> Preset:
        """`preset` with the file's own numbers. Raises BadInput if they do not fit it."""
        numbers = self.own_numbers(shapes, preset)
        return with_values(preset, {f"{self.part}.{key}": n for key, n in numbers.items()})

    def misfits(self, preset: Preset, shapes: Shapes) -> float:
        """Tensors that a file lacks, has too many or misshapen / tensors of a preset's network."""
        right = shapes_of(preset, self.part)
        names = shapes.keys() | right.keys()
        return sum(shapes.get(name) != right.get(name) for name in names) / len(right)

    def identify(self, shapes: Shapes) -> str | None:
        """Whose network this is: of one preset, or of several. Returns None if of none."""
        for other in self.presets():
            variant = self.variant(other, shapes)
            if not self.misfits(variant, shapes):
                names = " or ".join([other.name, *(twin.name for twin in self.twins(variant))])
                own = differences(other, variant).items()
                numbers = ", ".join(f"{key.partition('.')[2]} {n}" for key, n in own)
                return f"the {names} {self.part}" + (f" (with {numbers})" if own else "")
        return None

    def twins(self, preset: Preset) -> Iterator[Preset]:
        """The presets of other names whose network has the same names and shapes as `preset`'s."""
        network, shapes = getattr(preset, self.part), shapes_of(preset, self.part)
        for other in self.presets():
            twin = self.variant(other, shapes)
            is_same = getattr(twin, self.part) == network
            if is_same and twin.latent_shape == preset.latent_shape and twin.name != preset.name:
                yield twin

    def presets(self) -> Iterator[Preset]:
        """Those whose network these files can fill."""
        return (p for p in PRESETS.values() if getattr(p, self.part).kind in self.kinds)
