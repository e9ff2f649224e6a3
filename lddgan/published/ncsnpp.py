"""The published generators: NCSN++ of LDDGAN, and of DDGAN and WDDGAN on other inputs."""

from __future__ import annotations

import re
from typing import Final

from lddgan.networks.configs import NcsnppConfig
from lddgan.preset import Preset
from lddgan.published.shapes import Facts, Family, Shapes, are_multiples, levels_of

RESIDUAL: Final = re.compile(r"(Conv_\d|Dense_0|GroupNorm_1)\.")
PIXELS, WAVELETS = "which works on pixels", "which works on wavelet coefficients"


def facts_of_shapes(shapes: Shapes) -> Facts | None:
    """Architecture of a generator. Returns None if it is not a whole one."""
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
    if rest or blocks < 1 or outputs != channels or not are_multiples(widths, nf):
        return None
    attends = (level for level, n in enumerate(starts) if kinds.get(n + 1) == "attention")
    return {
        "channels": channels,
        "nf": nf,
        "ch_mult": tuple(width // nf for width in widths),
        "blocks": blocks,
        "attention_levels": tuple(attends),
        "nz": nz,
        "mapping_layers": len(mapping) - 1,
        "z_emb_dim": z_emb_dim,
    }


def last_module(shapes: Shapes) -> int:
    return max(int(m[1]) for k in shapes if (m := re.match(r"all_modules\.(\d+)\.", k)))


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


def facts_of_preset(preset: Preset) -> Facts:
    """The same facts, of a preset's generator."""
    cfg = preset.generator
    assert isinstance(cfg, NcsnppConfig)
    same = cfg.model_dump(include={"nf", "ch_mult", "blocks", "nz", "mapping_layers", "z_emb_dim"})
    levels = levels_of(preset.latent_size, cfg.ch_mult, cfg.attention)
    return same | {"channels": preset.latent_channels, "attention_levels": levels}


NCSNPP: Final = Family(
    part="generator",
    kinds=("ncsnpp",),
    roots=frozenset({"all_modules", "z_transform"}),
    free=("nz", "mapping_layers", "blocks"),
    facts_of_shapes=facts_of_shapes,
    facts_of_preset=facts_of_preset,
    relatives=(
        (
            f"a DDGAN generator for cifar10, {PIXELS}",
            {"channels": 3, "nf": 128, "ch_mult": (1, 2, 2, 2), "attention_levels": (1,)},
        ),
        (
            f"a DDGAN generator for celeba_256 or lsun, {PIXELS}",
            {"channels": 3, "nf": 64, "ch_mult": (1, 1, 2, 2, 4, 4), "attention_levels": (4,)},
        ),
        (
            f"a WDDGAN generator for cifar10, {WAVELETS}",
            {"channels": 12, "nf": 128, "ch_mult": (1, 2, 2), "attention_levels": ()},
        ),
        (f"a WDDGAN generator, {WAVELETS}", {"channels": 12}),
    ),
    foreign=((".convH_0.", f"a WDDGAN generator, {WAVELETS}"),),
)
