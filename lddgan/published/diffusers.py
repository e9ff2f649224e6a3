"""The autoencoders of diffusers (AutoencoderKL, VQModel): the names of latent diffusion for theirs.

Their config.json, if it is there, tells what tensors cannot.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from lddgan.checkpoint import read_bytes
from lddgan.errors import BadInput
from lddgan.networks.configs import ConvConfig
from lddgan.preset import Preset

CONFIG: Final = "config.json"
SUFFIXES: Final = (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")  # by preference
WEIGHTS: Final = tuple(f"diffusion_pytorch_model{suffix}" for suffix in SUFFIXES)
NAMES: Final = {
    r"\bdown_blocks\.": "down.",
    r"\bmid_block\.resnets\.0\b": "mid.block_1",
    r"\bmid_block\.resnets\.1\b": "mid.block_2",
    r"\bmid_block\.attentions\.0\b": "mid.attn_1",
    r"\bresnets\.": "block.",
    r"\battentions\.": "attn.",
    r"\b(down|up)samplers\.0\.": r"\1sample.",
    r"\bconv_shortcut\b": "nin_shortcut",
    r"\bconv_norm_out\b": "norm_out",
    r"\bgroup_norm\b": "norm",
    r"\b(?:to_q|query)\b": "q",  # diffusers' names since 0.14, and before
    r"\b(?:to_k|key)\b": "k",
    r"\b(?:to_v|value)\b": "v",
    r"\b(?:to_out\.0|proj_attn)\b": "proj_out",
}


def weights_of(path: Path) -> Path:
    """The weights in a folder of diffusers, or beside its config.json; else `path` itself."""
    folder = path.parent if path.name == CONFIG else path
    if not folder.is_dir():
        return path
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(f"{folder} holds no {' or '.join(WEIGHTS)}: give the autoencoder's file itself")


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's tensors with latent diffusion's names and shapes, if it is of diffusers."""
    ups = [int(match[1]) for name in state if (match := re.search(r"\bup_blocks\.(\d+)", name))]
    own = {}
    for name, tensor in state.items():
        # diffusers numbers the levels of the decoder in the order of use, the lowest one first
        name = re.sub(r"\bup_blocks\.(\d+)", lambda m: f"up.{max(ups) - int(m[1])}", name)
        for theirs, ours in NAMES.items():
            name = re.sub(theirs, ours, name)
        is_linear = ".attn" in name and tensor.dim() == 2  # a 1x1 convolution here
        own[name] = tensor[:, :, None, None] if is_linear else tensor
    return own


def check_config(preset: Preset, path: Path) -> list[str]:
    """Compare the config of an autoencoder of diffusers with a preset's.

    Returns what is to be said of it.  Raises BadInput with all that differs.
    """
    cfg, config = preset.autoencoder, read_config(path)
    assert isinstance(cfg, ConvConfig)
    wanted = {
        "_class_name": "VQModel" if cfg.has_codes else "AutoencoderKL",
        "block_out_channels": cfg.widths,
        "latent_channels": preset.latent_channels,
        "norm_num_groups": cfg.groups,
        "act_fn": "silu",
    }
    wrong = [
        f"{name} is {json.dumps(config[name])}, not {json.dumps(value)}"
        for name, value in wanted.items()
        if config and name in config and config[name] != value
    ]
    wrong += ["its decoder ends in no tanh"] * cfg.tanh
    if wrong:
        raise BadInput(f"{path} is no autoencoder for {preset.name}: {'; '.join(wrong)}")
    if config is None:
        return [f"{path.name}: there is no {CONFIG} beside it; it was judged by its tensors"]
    scaling, ours = config.get("scaling_factor"), preset.scale_factor
    if scaling is None or math.isclose(scaling * ours, 1, rel_tol=1e-3):
        return []
    return [
        f"{path.name}: its scaling_factor {scaling} is not used, scale_factor stays {ours:g}; "
        "`lddgan train-autoencoder --steps 0` measures it"
    ]


def read_config(path: Path) -> dict[str, Any] | None:
    """The config of weights, of their name or beside them. Raises BadInput if it is damaged."""
    for place in (path.with_suffix(".json"), path.with_name(CONFIG)):
        if place.is_file():
            with suppress(json.JSONDecodeError, UnicodeDecodeError):
                config = json.loads(read_bytes(place))
                scaling = config.get("scaling_factor") if isinstance(config, dict) else "none"
                if isinstance(scaling, int | float | None):
                    return config
            raise BadInput(f"{place} is no config of diffusers")
    return None
