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
from lddgan.networks.configs import ConvConfig, VqConfig
from lddgan.preset import Preset
from lddgan.published.shapes import Facts, Family, Shapes, are_multiples, levels_of

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
    """(the autoencoder's tensors, how many were left out by prefix).

    Raises BadInput for a tensor of a whole model that is of neither.
    """
    inside = any(name.startswith(STAGE) for name in state)
    own: dict[str, Tensor] = {}
    left_out: Counter[str] = Counter()
    unknown = []
    for name, tensor in state.items():
        prefix = prefix_left_out(name, LEFT_OUT_OF_WHOLE if inside else LEFT_OUT)
        if prefix:
            left_out[prefix] += 1
        elif inside and not name.startswith(STAGE):
            unknown.append(name)
        else:
            own[name.removeprefix(STAGE)] = tensor
    if unknown:
        raise BadInput(f"{path} has {len(unknown)} tensors of unknown purpose: {some(unknown)}")
    return own, left_out


def prefix_left_out(name: str, prefixes: tuple[str, ...]) -> str:
    """The prefix (ending in a dot) or whole name that leaves a tensor out, "" if none does."""
    matching = (p for p in prefixes if name == p or (p.endswith(".") and name.startswith(p)))
    return next(matching, "")


def facts_of_shapes(shapes: Shapes) -> Facts | None:
    """Architecture of an autoencoder. Returns None if it is not a whole one."""
    found = [m for k in shapes if (m := re.match(r"encoder\.down\.(\d+)\.(\w+)\.(\d+)", k))]
    levels = sorted({int(m[1]) for m in found if m[2] == "block"})
    blocks = {m[3] for m in found if m[1] == "0" and m[2] == "block"}
    try:
        ch = shapes["encoder.conv_in.weight"][0]
        widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in levels]
        channels = shapes["decoder.conv_in.weight"][1]
    except (KeyError, IndexError):
        return None
    if not blocks or not are_multiples(widths, ch):
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


def facts_of_preset(preset: Preset) -> Facts:
    """The same facts, of a preset's autoencoder."""
    cfg = preset.autoencoder
    assert isinstance(cfg, ConvConfig)
    return {
        "kind": "vq" if cfg.has_codes else "kl",
        "channels": preset.latent_channels,
        "ch": cfg.ch,
        "ch_mult": cfg.ch_mult,
        "blocks": cfg.blocks,
        "attention_levels": levels_of(preset.image_size, cfg.ch_mult, cfg.attention),
        "codes": cfg.codes if isinstance(cfg, VqConfig) else 0,
    }


LATENT_DIFFUSION: Final = Family(
    part="autoencoder",
    kinds=("kl", "vq", "none"),
    roots=frozenset({"encoder", "decoder", "quant_conv", "first_stage_model"}),
    free=("blocks", "codes"),
    facts_of_shapes=facts_of_shapes,
    facts_of_preset=facts_of_preset,
)
