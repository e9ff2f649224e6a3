"""Find a network's state dict in a file, however somebody wrapped it and prefixed its names."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from torch import Tensor

from lddgan.checkpoint import (
    FORMATS,
    check_metadata_kept,
    is_safetensors,
    read_safetensors,
    some,
)
from lddgan.errors import BadInput
from lddgan.published.latent_diffusion import LATENT_DIFFUSION
from lddgan.published.ncsnpp import NCSNPP
from lddgan.published.pickles import printable, read_pickle
from lddgan.published.shapes import Part

FAMILIES: Final = (NCSNPP, LATENT_DIFFUSION)
WRAPPERS: Final = r"(?:module\.|_orig_mod\.)*"  # of DataParallel, DDP and torch.compile
NETWORKS: Final[Mapping[Part, str]] = {  # what whole models call the network in them
    "generator": "netG|generator|gen|G|g|model|net|network|ema",
    "autoencoder": "vae|vqvae|vqgan|ae|model|net|network|ema",
}
COUNTER: Final = "n_averaged"  # torch's AveragedModel keeps it beside the network
AVERAGED: Final = re.compile(r"(?:^|[._])(?:ema|avg|averaged?)(?:[._]|$)", re.IGNORECASE)
KEYS_DEEP: Final = 2  # a state dict lies under so many keys at most

WHOLE_MODELS: Final = (  # (how names of its tensors begin, what it is), though a part may fit
    (r"lora_|.*[._]lora[._]|.*\.(?:hada|lokr)_", "a LoRA, which changes another network"),
    (
        r"cond_stage_model\.(?:transformer|model)\.|conditioner\.|text_encoders\.",
        "a whole Stable Diffusion model: give its autoencoder alone",
    ),
)
STRANGERS: Final = (
    (r"(?:unet\.)?(?:down_blocks|up_blocks|mid_block|time_embedding)\.", "a U-Net of diffusers"),
    (r"(?:model\.)?diffusion_model\.", "a U-Net of latent diffusion"),
    (r"(?:transformer\.)?\w*transformer_blocks\.", "a diffusion transformer"),
    (r"(?:text|vision)_model\.", "an encoder of text or images (CLIP)"),
)


@dataclass(frozen=True)
class Found:
    """A network's state dict, and what else is in its file."""

    key: str  # dotted; empty if the file is the state dict
    state: Mapping[str, Tensor]  # names without what wrappers put before them
    keys: tuple[str, ...]  # of every state dict in the file
    around: Mapping[Any, Any]  # the whole file, if it is wrapped
    left_out: Counter[str]  # tensors by key
    notes: list[str]

    @property
    def is_average(self) -> bool:
        return AVERAGED.search(self.key) is not None


def read_file(path: Path) -> Any:
    """Read what torch.save or safetensors wrote to `path`, whatever its suffix. Raises BadInput."""
    if not is_safetensors(path):
        return read_pickle(path)
    metadata, tensors = read_safetensors(path)
    if metadata.get("format") in FORMATS:
        raise BadInput(f"{path} is an lddgan checkpoint already: it needs no import")
    return tensors


def read_state(path: Path, part: Part, keys: Sequence[str], use_raw: bool = False) -> Found:
    """Read the state dict of a generator or autoencoder.

    Of several the one under a key of `keys` is taken, else the only moving average (the only other
    one, if `use_raw`).  Raises BadInput if there is none, or no preference among several.
    """
    loaded = read_file(path)
    if not isinstance(loaded, Mapping):
        raise BadInput(f"{path} holds a {type(loaded).__name__}, not a state dict")
    check_metadata_kept(loaded, path)
    found = dict(states_in(loaded, part, path))
    if not found:
        others = [printable(str(k)) for k, v in loaded.items() if not is_tensor(k, v)]
        cause = f"not tensors: {some(others)}" if others else "it has no tensors"
        raise BadInput(f"{path} is no state dict: {cause}")
    holding = [key for key in found if holds(found[key], part)]
    known = [key for key in found if any(family.holds(found[key]) for family in FAMILIES)]
    chosen = [key for key in found if key in keys] or holding or (known or list(found))[:1]
    if len(chosen) > 1:
        chosen = [key for key in chosen if bool(AVERAGED.search(key)) != use_raw]
    if len(chosen) != 1:
        raise BadInput(
            f"{path} holds {len(holding)} {part}s: {some(holding)}; choose one of them with --key"
        )
    key = chosen[0]
    check_kind_of_network(found[key], part, path)
    notes = []
    if AVERAGED.search(key) or len(holding) > 1:
        what = "the moving average under " if AVERAGED.search(key) else ""
        others = [other for other in holding if other != key]
        notes = [f"{path.name}: took {what}{key}" + f", not {some(others)}" * bool(others)]
    around = {} if is_state_dict(loaded) else loaded
    left_out = count_left_out(loaded, found, key)
    return Found(key, found[key], tuple(found), around, left_out, notes)


def states_in(
    value: object, part: Part, path: Path, key: str = "", deep: int = KEYS_DEEP
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every state dict in a file, by its dotted key. Raises BadInput if one mixes its prefixes."""
    if is_state_dict(value):
        for network, state in networks_in(value, part, path).items():
            yield ".".join(filter(None, (key, network))), state
    elif isinstance(value, Mapping) and deep:
        for name, inner in value.items():
            if isinstance(name, str) and name == printable(name):
                yield from states_in(inner, part, path, f"{key}.{name}".strip("."), deep - 1)


def networks_in(
    state: Mapping[str, Tensor], part: Part, path: Path
) -> dict[str, dict[str, Tensor]]:
    """The tensors of a state dict by the network that their names begin with, prefixes taken off.

    Those that name none are under "".  Raises BadInput if some of a network's have other wrappers.
    """
    family = next(family for family in FAMILIES if family.part == part)
    named = rf"((?:ema_|online_)?(?:{NETWORKS[part]})(?:_ema)?)\."
    begins = rf"(?:{'|'.join(sorted(family.roots))})\."
    prefix = re.compile(rf"{WRAPPERS}(?:{named}{WRAPPERS}(?={begins}))?")
    networks: dict[str, dict[str, Tensor]] = defaultdict(dict)
    prefixes: dict[str, dict[str, str]] = defaultdict(dict)  # of a network: prefix -> some name
    for name, tensor in state.items():
        match = prefix.match(name)
        if match and name != COUNTER:
            networks[match[1] or ""][name[match.end() :]] = tensor
            prefixes[match[1] or ""].setdefault(match[0], name)
    for mixed in prefixes.values():
        if len(mixed) > 1:
            names = " and ".join(list(mixed.values())[:2])
            raise BadInput(f"{path} mixes two networks: the prefixes of {names} differ")
    return networks


def is_tensor(name: object, value: object) -> bool:
    return isinstance(value, Tensor) and isinstance(name, str) and name == printable(name)


def is_state_dict(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    return isinstance(value, Mapping) and bool(value) and all(map(is_tensor, value, value.values()))


def holds(names: Mapping[str, Tensor], part: Part) -> bool:
    return any(family.part == part and family.holds(names) for family in FAMILIES)


def check_kind_of_network(state: Mapping[str, Tensor], part: Part, path: Path) -> None:
    """Raise BadInput, saying what it is, if a state dict in a file is of another network."""
    what = described(WHOLE_MODELS, state)
    if what is None and holds(state, part):
        return
    other = next((family.part for family in FAMILIES if family.holds(state)), part)
    if what is None and other != part:
        raise BadInput(f"{path} is the {other}, given as the {part}: are the two files swapped?")
    what = what or described(STRANGERS, state)
    if what is not None:
        raise BadInput(f"{path} is {what}, not the {part}")
    raise BadInput(f"{path} holds no {part}: its tensors are {some(list(state))}")


def described(table: Sequence[tuple[str, str]], names: Mapping[str, Tensor]) -> str | None:
    """The first entry of a table whose pattern is how some name begins. Returns None if none is."""
    return next((what for begins, what in table if any(re.match(begins, n) for n in names)), None)


def count_left_out(
    loaded: Mapping[Any, Any], found: Mapping[str, Mapping[str, Tensor]], chosen: str
) -> Counter[str]:
    """How many tensors of a file are not in the chosen state dict, by key."""
    if not is_state_dict(loaded):
        left_out = count_tensors(loaded)
        above = next(key for key in left_out if f"{chosen}.".startswith(f"{key}."))
        left_out[above] -= len(found[chosen])
        return left_out
    others = [key for key in found if key != chosen]
    names = [key or name.split(".")[0] for key in others for name in found[key]]
    return Counter(names + [name for name in loaded if name == COUNTER])


def count_tensors(around: Mapping[Any, Any]) -> Counter[str]:
    """How many tensors are under each key of a file, at any depth."""
    counts: Counter[str] = Counter()
    for key, value in around.items():
        stack, seen = [value], set()  # a pickled container may hold itself
        while stack:
            item = stack.pop()
            if isinstance(item, Tensor):
                counts[str(key)] += 1
            elif isinstance(item, dict | list | tuple) and id(item) not in seen:
                seen.add(id(item))
                stack += item.values() if isinstance(item, dict) else item
    return counts
