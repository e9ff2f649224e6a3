"""The published autoencoders: Lightning files of latent diffusion, bare or in a whole model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

from lddgan.checkpoint import some
from lddgan.errors import BadInput
from lddgan.preset import Preset
from lddgan.published.shapes import Family, Shapes

STAGE: Final = "first_stage_model."  # the autoencoder within a latent-diffusion model
LEFT_OUT: Final = re.compile(r"(?:loss|model_ema)\.")  # beside the autoencoder
LEFT_OUT_OF_WHOLE: Final = re.compile(  # beside it in a latent-diffusion model
    r"(?:first_stage_model\.)?(?:loss|model_ema)\.|(?:model\.diffusion_model|cond_stage_model)\."
    r"|(?:betas|\w*alphas_cumprod\w*|posterior_\w+|lvlb_weights|logvar|scale_factor)$"
)


def split_autoencoder(
    state: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], Counter[str]]:
    """(the autoencoder's tensors, how many were left out by prefix). Raises BadInput for others."""
    is_whole = any(name.startswith(STAGE) for name in state)
    others = LEFT_OUT_OF_WHOLE if is_whole else LEFT_OUT
    found = {name: others.match(name) for name in state}
    unknown = [name for name in state if not (found[name] or name.startswith(STAGE))]
    if is_whole and unknown:
        raise BadInput(f"{path} has {len(unknown)} tensors of unknown purpose: {some(unknown)}")
    own = {name.removeprefix(STAGE): state[name] for name in state if not found[name]}
    return own, Counter(match[0] for match in found.values() if match)


def own_numbers(shapes: Shapes, preset: Preset) -> dict[str, int]:
    """The blocks of a level, and the codes of a codebook, as far as they are clear."""
    found = (re.match(r"encoder\.down\.0\.block\.(\d+)\.", name) for name in shapes)
    numbers = {"blocks": len({match[1] for match in found if match})}
    if preset.autoencoder.has_codes:
        numbers["codes"] = next(iter(shapes.get("quantize.embedding.weight", ())), 0)
    return {key: number for key, number in numbers.items() if number}


LATENT_DIFFUSION: Final = Family(
    part="autoencoder",
    kinds=("kl", "vq", "none"),
    roots=frozenset(
        {"encoder", "decoder", "quant_conv", "post_quant_conv", "quantize", STAGE[:-1]}
    ),
    own_numbers=own_numbers,
)
