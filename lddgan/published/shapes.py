"""What the shapes in a state dict say about the network they belong to.

The facts of a file are compared with those of a preset.  Some may differ between runs of the same
code (`FREE`); the others say which data set a file was trained for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lddgan.presets import PRESETS, Preset

Shapes = Mapping[str, tuple[int, ...]]
Facts = dict[str, Any]  # name -> int, str or tuple of ints

FREE = {  # facts that one's own variant of a preset may change
    "generator": ("nz", "mapping_layers", "blocks"),
    "autoencoder": ("blocks", "codes"),
}
RESIDUAL = re.compile(r"(Conv_\d|Dense_0|GroupNorm_1)\.")
PREDECESSORS: tuple[tuple[str, Facts], ...] = (  # the same network on other inputs
    (
        "a DDGAN generator for cifar10, which works on pixels",
        {"channels": 3, "nf": 128, "ch_mult": (1, 2, 2, 2), "attention_levels": (1,)},
    ),
    (
        "a DDGAN generator for celeba_256 or lsun, which works on pixels",
        {"channels": 3, "nf": 64, "ch_mult": (1, 1, 2, 2, 4, 4), "attention_levels": (4,)},
    ),
    (
        "a WDDGAN generator for cifar10, which works on wavelet coefficients",
        {"channels": 12, "nf": 128, "ch_mult": (1, 2, 2), "attention_levels": ()},
    ),
    ("a WDDGAN generator, which works on wavelet coefficients", {"channels": 12}),
)


def kind_of(names: Iterable[str]) -> str | None:
    """The network that parameter names belong to: generator, autoencoder, discriminator or None."""
    roots = {name.split(".")[0] for name in names}
    for kind, typical in (
        ("generator", {"all_modules", "z_transform"}),
        ("autoencoder", {"encoder", "decoder", "quant_conv", "first_stage_model"}),
        ("discriminator", {"start_conv", "t_embed", "end_linear", "final_conv"}),
    ):
        if roots & typical:
            return kind
    return None


def generator_facts(shapes: Shapes) -> Facts | None:
    """Architecture of a generator; None where the names or shapes are not those of a whole one."""
    kinds = module_kinds(shapes)
    pyramids = sorted(n for n, kind in kinds.items() if kind == "pyramid")
    levels = len(pyramids) + 1
    residuals = sum(kind == "residual" for kind in kinds.values())
    blocks, rest = divmod(residuals - 3 * levels, 2 * levels)  # down, up and the middle together
    starts = [3] + [n + 1 for n in pyramids]  # the first module of each level
    mapping = {m[1] for k in shapes if (m := re.match(r"z_transform\.(\d+)\.", k))}
    try:
        nf, channels = shapes["all_modules.2.weight"][:2]
        widths = [shapes[f"all_modules.{n}.Conv_0.weight"][0] for n in starts]
        z_emb_dim, nz = shapes["z_transform.1.weight"]
        outputs = shapes[f"all_modules.{last_module(shapes)}.weight"][0]
    except (KeyError, IndexError, ValueError):
        return None
    if rest or blocks < 1 or outputs != channels or not multiples(widths, nf):
        return None
    return {
        "channels": channels,
        "nf": nf,
        "ch_mult": tuple(width // nf for width in widths),
        "blocks": blocks,
        "attention_levels": tuple(
            level for level, n in enumerate(starts) if kinds.get(n + 1) == "attention"
        ),
        "nz": nz,
        "mapping_layers": len(mapping) - 1,
        "z_emb_dim": z_emb_dim,
    }


def last_module(shapes: Shapes) -> int:
    return max(int(m[1]) for k in shapes if (m := re.match(r"all_modules\.(\d+)\.", k)))


def multiples(widths: list[int], base: int) -> bool:
    return base > 0 and all(width % base == 0 for width in widths)


def module_kinds(shapes: Shapes) -> dict[int, str]:
    """What each `all_modules.N` of a generator is."""
    kinds: dict[int, str] = {}
    for name in shapes:
        match = re.match(r"all_modules\.(\d+)\.(.+)", name)
        if match is None:
            continue
        number, rest = int(match[1]), match[2]
        if RESIDUAL.match(rest):
            kinds[number] = "residual"
        elif rest.startswith("NIN_"):
            kinds[number] = "attention"
        elif rest.startswith("Conv2d_0."):
            kinds[number] = "pyramid"
    return kinds


def autoencoder_facts(shapes: Shapes) -> Facts | None:
    """Architecture of an autoencoder; None where it is not a whole one."""
    found = [m for k in shapes if (m := re.match(r"encoder\.down\.(\d+)\.(\w+)\.(\d+)", k))]
    levels = sorted({int(m[1]) for m in found if m[2] == "block"})
    blocks = {m[3] for m in found if m[1] == "0" and m[2] == "block"}
    try:
        ch = shapes["encoder.conv_in.weight"][0]
        widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in levels]
        channels = shapes["decoder.conv_in.weight"][1]
    except (KeyError, IndexError):
        return None
    if not blocks or not multiples(widths, ch):
        return None
    codes = shapes.get("quantize.embedding.weight")
    return {
        "kind": "kl" if codes is None else "vq",
        "channels": channels,
        "ch": ch,
        "ch_mult": tuple(width // ch for width in widths),
        "blocks": len(blocks),
        "attention_levels": tuple(sorted({int(m[1]) for m in found if m[2] == "attn"})),
        "codes": codes[0] if codes else 0,
    }


FACTS: dict[str, Callable[[Shapes], Facts | None]] = {
    "generator": generator_facts,
    "autoencoder": autoencoder_facts,
}


def preset_facts(preset: Preset, part: str) -> Facts:
    """The same facts, of a preset's generator or autoencoder."""
    if part == "generator":
        generator = preset.generator
        return {
            "channels": preset.latent_channels,
            "nf": generator.nf,
            "ch_mult": generator.ch_mult,
            "blocks": generator.blocks,
            "attention_levels": _levels(preset.latent_size, generator.ch_mult, generator.attention),
            "nz": generator.nz,
            "mapping_layers": generator.mapping_layers,
            "z_emb_dim": generator.z_emb_dim,
        }
    codec = preset.autoencoder
    return {
        "kind": "vq" if codec.kind == "vq" else "kl",
        "channels": preset.latent_channels,
        "ch": codec.ch,
        "ch_mult": codec.ch_mult,
        "blocks": codec.blocks,
        "attention_levels": _levels(preset.image_size, codec.ch_mult, codec.attention),
        "codes": codec.codes,
    }


def _levels(size: int, ch_mult: tuple[int, ...], resolutions: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(level for level in range(len(ch_mult)) if (size >> level) in resolutions)


def differences(facts: Facts, expected: Facts, part: str) -> tuple[Facts, Facts]:
    """(allowed, forbidden): the facts that are not as expected, by whether they are free."""
    unequal = {key: facts[key] for key in expected if facts[key] != expected[key]}
    allowed = {key: value for key, value in unequal.items() if key in FREE[part]}
    return allowed, {key: value for key, value in unequal.items() if key not in FREE[part]}


def with_facts(preset: Preset, allowed: Facts, part: str) -> Preset:
    """A copy of `preset` that has these free facts."""
    section = "generator" if part == "generator" else "autoencoder"
    changed = preset.model_dump()
    changed[section] |= allowed
    return Preset.model_validate(changed)


def identify(facts: Facts, part: str) -> str | None:
    """Whose network this is, in words ("the cifar10 generator", "a DDGAN ..."), or None."""
    for name, preset in PRESETS.items():
        allowed, forbidden = differences(facts, preset_facts(preset, part), part)
        if not forbidden:
            own = ", ".join(f"{key} {value}" for key, value in allowed.items())
            return f"the {name} {part}" + (f" (with {own})" if own else "")
    for description, typical in PREDECESSORS if part == "generator" else ():
        if all(facts[key] == value for key, value in typical.items()):
            return description
    return None
