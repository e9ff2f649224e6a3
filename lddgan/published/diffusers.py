"""The autoencoders of diffusers (AutoencoderKL, VQModel): the names of latent diffusion for theirs.

Their config.json, if it is there, tells what tensors cannot.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from lddgan.checkpoint import read_bytes
from lddgan.errors import BadInput
from lddgan.networks.configs import AUTOENCODER_GROUPS, ConvConfig
from lddgan.preset import Preset

CONFIG: Final = "config.json"
WEIGHTS: Final = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
THEIRS: Final = re.compile(r"(?:encoder|decoder)\.(?:down_blocks|up_blocks|mid_block)\.")

NAMES: Final[tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]] = (
    (r"\bdown_blocks\.", "down."),
    (r"\bmid_block\.resnets\.(\d+)", lambda match: f"mid.block_{int(match[1]) + 1}"),
    (r"\bmid_block\.attentions\.0\b", "mid.attn_1"),
    (r"\bresnets\.", "block."),
    (r"\battentions\.", "attn."),
    (r"\b(down|up)samplers\.0\.", r"\1sample."),
    (r"\bconv_shortcut\b", "nin_shortcut"),
    (r"\bconv_norm_out\b", "norm_out"),
    (r"\bgroup_norm\b", "norm"),
    (r"\b(?:to_q|query)\b", "q"),  # diffusers' names since 0.14, and before
    (r"\b(?:to_k|key)\b", "k"),
    (r"\b(?:to_v|value)\b", "v"),
    (r"\b(?:to_out\.0|proj_attn)\b", "proj_out"),
)
LINEAR: Final = re.compile(r"\.attn(?:_1|\.\d+)\.(?:q|k|v|proj_out)\.weight$")  # there, 1x1 here
FIXED: Final = {  # what its config must say, if it says it
    "norm_num_groups": AUTOENCODER_GROUPS,
    "norm_type": "group",
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}


def weights_of(path: Path) -> Path:
    """The weights in a folder of diffusers, or beside its config.json; else `path` itself."""
    if not path.is_dir() and path.name != CONFIG:
        return path
    folder = path if path.is_dir() else path.parent
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(f"{folder} holds no {' or '.join(WEIGHTS)}: give the autoencoder's file itself")


def is_of_diffusers(names: Iterable[str]) -> bool:
    return any(THEIRS.match(name) for name in names)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of diffusers' autoencoder with latent diffusion's names and shapes."""
    ups = {int(match[1]) for name in state if (match := re.match(r".*up_blocks\.(\d+)\.", name))}
    own = {}
    for name, tensor in state.items():
        # diffusers numbers the levels of the decoder in the order of use, the lowest one first
        name = re.sub(r"\bup_blocks\.(\d+)", lambda m: f"up.{max(ups) - int(m[1])}", name)
        for theirs, ours in NAMES:
            name = re.sub(theirs, ours, name)
        is_linear = LINEAR.search(name) and tensor.dim() == 2
        own[name] = tensor[:, :, None, None] if is_linear else tensor
    return own


def check_fits(own: Mapping[str, Tensor], preset: Preset, path: Path) -> list[str]:
    """Compare an autoencoder of diffusers, `renamed`, and its config with a preset's.

    Returns what is to be said of it.  Raises BadInput with all that differs.
    """
    cfg = preset.autoencoder
    assert isinstance(cfg, ConvConfig)
    config = read_config(path)
    blocks = sum(level == 0 for _, level in numbered(own, r"block\.\d+\.conv1\.weight"))
    firsts = {level: len(own[name]) for name, level in numbered(own, r"block\.0\.conv1\.weight")}
    attends = {preset.image_size >> level for _, level in numbered(own, r"attn\..*")}
    found = [
        ("block_out_channels", [firsts[level] for level in sorted(firsts)]),
        ("attention", sorted(attends)),
        *(config or {}).items(),
    ]
    wanted = FIXED | {
        "_class_name": "VQModel" if cfg.has_codes else "AutoencoderKL",
        "block_out_channels": cfg.widths,
        "layers_per_block": blocks,
        "latent_channels": preset.latent_channels,
        "attention": sorted(cfg.attention),
    }
    wrong = {
        f"{name} is {json.dumps(value)}, not {json.dumps(wanted[name])}": None
        for name, value in found
        if name in wanted and value != wanted[name]
    }
    if cfg.tanh:
        wrong["its decoder ends in no tanh"] = None
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


def numbered(names: Iterable[str], rest: str) -> list[tuple[str, int]]:
    """(name, level) of the encoder's tensors whose name ends so."""
    found = ((name, re.fullmatch(rf"encoder\.down\.(\d+)\.{rest}", name)) for name in names)
    return [(name, int(match[1])) for name, match in found if match]


def read_config(path: Path) -> dict[str, Any] | None:
    """The config of weights, of their name or beside them. Raises BadInput if it is damaged."""
    for place in (path.with_suffix(".json"), path.with_name(CONFIG)):
        if place.is_file():
            try:
                config = json.loads(read_bytes(place))
            except ValueError as error:
                raise BadInput(f"{place} is no JSON: {error}") from error
            scaling = config.get("scaling_factor") if isinstance(config, dict) else ""
            if scaling is None or isinstance(scaling, int | float):
                return config
            raise BadInput(f"{place} is no config of diffusers")
    return None
