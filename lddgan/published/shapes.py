"""What the shapes in a state dict say about the network they belong to.

The facts of a file are compared with those of a preset.  Some may differ between runs of the same
code (`Family.free`); the others say which data set a file was trained for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lddgan.preset import Preset
from lddgan.presets import PRESETS

Shapes = Mapping[str, tuple[int, ...]]
Facts = dict[str, Any]  # name -> int, str or tuple of ints
Part = Literal["generator", "autoencoder"]


@dataclass(frozen=True)
class Family:
    """How the published files of one network are recognised."""

    part: Part
    kinds: tuple[str, ...]  # in the network registry, that these files can fill
    roots: frozenset[str]  # first parts of the names of its tensors
    free: tuple[str, ...]  # facts that one's own variant of a preset may change
    facts_of_shapes: Callable[[Shapes], Facts | None]  # None if they are not of a whole network
    facts_of_preset: Callable[[Preset], Facts]
    relatives: tuple[tuple[str, Facts], ...] = ()  # the same network on other inputs, in words
    foreign: tuple[tuple[str, str], ...] = ()  # (part of a name, the other network that has it)

    def holds(self, names: Iterable[str]) -> bool:
        """Whether parameter names are those of this family."""
        return not self.roots.isdisjoint(name.split(".")[0] for name in names)

    def differences(self, facts: Facts, preset: Preset) -> tuple[Facts, Facts]:
        """(allowed, forbidden): the facts that are not a preset's, by whether they are free."""
        expected = self.facts_of_preset(preset)
        unequal = {key: facts[key] for key in expected if facts[key] != expected[key]}
        allowed = {key: value for key, value in unequal.items() if key in self.free}
        return allowed, {key: value for key, value in unequal.items() if key not in self.free}

    def identify(self, facts: Facts) -> str | None:
        """Whose network this is, in words ("the cifar10 generator", "a DDGAN ..."), or None."""
        for name, preset in PRESETS.items():
            if getattr(preset, self.part).kind in self.kinds:
                allowed, forbidden = self.differences(facts, preset)
                if not forbidden:
                    own = ", ".join(f"{key} {value}" for key, value in allowed.items())
                    return f"the {name} {self.part}" + (f" (with {own})" if own else "")
        for description, typical in self.relatives:
            if all(facts[key] == value for key, value in typical.items()):
                return description
        return None


def with_facts(preset: Preset, allowed: Facts, part: Part) -> Preset:
    """A copy of `preset` that has these free facts."""
    changed = preset.model_dump()
    changed[part] |= allowed
    return Preset.model_validate(changed)


def levels_of(size: int, ch_mult: tuple[int, ...], resolutions: tuple[int, ...]) -> tuple[int, ...]:
    """The levels of a network on [size,size] whose resolutions are listed."""
    return tuple(level for level in range(len(ch_mult)) if (size >> level) in resolutions)


def are_multiples(widths: list[int], base: int) -> bool:
    return base > 0 and all(width % base == 0 for width in widths)
