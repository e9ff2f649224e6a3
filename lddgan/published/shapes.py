"""Whose network a state dict holds, by the names and shapes of its tensors.

A few numbers, which may differ between runs of the same code, are read off the file.  With them the
shapes are those of the preset's network, or of another data set's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    relatives: tuple[tuple[str, Shapes], ...] = ()  # the same network on other inputs, in words

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

    def identify(self, shapes: Shapes, preset: Preset) -> str | None:
        """Whose network this is, which is not `preset`'s. Returns None if it is no known one."""
        for name, other in PRESETS.items():
            if getattr(other, self.part).kind in self.kinds:
                variant = self.variant(other, shapes)
                if not self.misfits(variant, shapes):
                    own = differences(other, variant).items()
                    numbers = ", ".join(f"{key.partition('.')[2]} {n}" for key, n in own)
                    return f"the {name} {self.part}" + (f" (with {numbers})" if own else "")
        right = shapes_of(preset, self.part)
        for description, typical in self.relatives:
            has = all(shapes.get(name) == shape for name, shape in typical.items())
            if has and any(right.get(name) != shape for name, shape in typical.items()):
                return description
        return None
