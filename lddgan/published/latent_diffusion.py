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
LEFT_OUT: Final = ("loss.", "model_ema.")  # in an autoencoder's file, beside the autoencoder
LEFT_OUT_OF_WHOLE: Final = (  # in a latent-diffusion model's
    *LEFT_OUT,
    *(f"{STAGE}{prefix}" for prefix in LEFT_OUT),
    *("model.diffusion_model.", "cond_stage_model."),
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped"),
    *("posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar", "scale_factor"),
)


def split_autoencoder(
    state: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], Counter[str]]:
    """(the autoencoder's tensors, how many were left out by prefix). Raises BadInput for others."""
    inside = any(name.startswith(STAGE) for name in state)
    own: dict[str, Tensor] = {}
    left_out: Counter[str] = Counter()
    unknown = []
    prefixes = LEFT_OUT_OF_WHOLE if inside else LEFT_OUT  # a whole name, if it ends in no dot
    for name, tensor in state.items():
        found = [p for p in prefixes if name == p or (p[-1] == "." and name.startswith(p))]
        if found:
            left_out[found[0]] += 1
        elif inside and not name.startswith(STAGE):
            unknown.append(name)
        else:
            own[name.removeprefix(STAGE)] = tensor
    if unknown:
        raise BadInput(f"{path} has {len(unknown)} tensors of unknown purpose: {some(unknown)}")
    return own, left_out


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
