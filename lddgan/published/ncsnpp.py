"""The published generators: NCSN++ of LDDGAN, DDGAN and WDDGAN, and the wavelet one of WDDGAN."""

from __future__ import annotations

import re
from typing import Final

from lddgan.networks.configs import NcsnppConfig
from lddgan.preset import Preset
from lddgan.published.shapes import Family, Shapes

RESIDUAL: Final = re.compile(r"all_modules\.(\d+)\.(?:Conv_\d|Dense_0|GroupNorm_1)\.")


def own_numbers(shapes: Shapes, preset: Preset) -> dict[str, int]:
    """nz, the blocks of a level and the depth of the mapping network, as far as they are clear."""
    cfg = preset.generator
    assert isinstance(cfg, NcsnppConfig)
    levels = len(cfg.ch_mult)
    residuals = len({match[1] for name in shapes if (match := RESIDUAL.match(name))})
    blocks, rest = divmod(residuals - 3 * levels, 2 * levels)  # down, up and the middle together
    mapping = {name.split(".")[1] for name in shapes if name.startswith("z_transform.")}
    first = shapes.get("z_transform.1.weight", ())
    numbers = {"blocks": 0 if rest else blocks, "nz": first[1] if len(first) == 2 else 0}
    depth = {"mapping_layers": len(mapping) - 1} if mapping else {}
    return {key: number for key, number in numbers.items() if number > 0} | depth


NCSNPP: Final = Family(
    part="generator",
    kinds=("ncsnpp", "wavelet-ncsnpp"),
    roots=frozenset({"all_modules", "z_transform"}),
    own_numbers=own_numbers,
)
