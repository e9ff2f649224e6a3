"""Find a network's state dict in a file, however somebody wrapped it and prefixed its names."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from torch import Tensor

from lddgan.checkpoint import check_metadata_kept, is_ours, is_safetensors, read_safetensors, some
from lddgan.errors import BadInput
from lddgan.published.latent_diffusion import LATENT_DIFFUSION
from lddgan.published.ncsnpp import NCSNPP
from lddgan.published.pickles import read_pickle
from lddgan.published.shapes import Part

FAMILIES: Final = (NCSNPP, LATENT_DIFFUSION)
WRAPPERS: Final = r"(?:(?:module|_orig_mod|_forward_module)\.)*"  # of DDP, compile and Lightning
NETWORKS: Final = (  # in whole models
    "netG|generator|gen|G|g|vae|vqvae|vqgan|autoencoder|ae|model|net|network|ema|state_dict"
)
NAMED: Final = rf"(?>(?:ema_|online_)?(?:{NETWORKS})(?:_ema)?\.)"
ROOTS: Final = "|".join(root for family in FAMILIES for root in family.roots)
PREFIX: Final = re.compile(rf"{WRAPPERS}(?:((?:{NAMED}{WRAPPERS})+)(?=(?:{ROOTS})\.))?")
COUNTER: Final = "n_averaged"  # torch's AveragedModel keeps it beside the network
WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of a key: generatorEMA has two
AVERAGES: Final = {"ema", "gema", "avg", "average", "averaged", "shadow", "swa", "running"}
NO_AVERAGES: Final = {"online", "raw", "no", "non"}
LIT_EMA: Final = "model_ema."  # before names without dots, of the averages of latent diffusion
UNTAKEN: Final = re.compile(rf"model_ema\.(?:{ROOTS})(?!\.)")

UNET: Final = "a U-Net of latent diffusion"  # may be beside an autoencoder
STRANGERS: Final = {  # how names of its tensors begin -> what it is
    r"lora_|.*[._]lora[._]|.*\.(?:hada|lokr)_": "a LoRA, which changes another network",
    r"cond_stage_model\.(?:transformer|model)\.|conditioner\.|text_encoders\.": (
        "a whole Stable Diffusion model: give its autoencoder alone"
    ),
    r"(?:in_blocks|out_blocks)\.": "a U-ViT",
    r"(?:unet\.)?(?:down_blocks|up_blocks|mid_block|time_embedding)\.": "a U-Net of diffusers",
    r"(?:model\.)?diffusion_model\.": UNET,
    r"(?:transformer\.)?\w*transformer_blocks\.": "a diffusion transformer",
    r"(?:text|vision)_model\.": "an encoder of text or images (CLIP)",
}


@dataclass(frozen=True)
class Found:
    """A network's state dict, and what else is in its file."""

    key: str  # dotted; empty if the file is the state dict
    state: Mapping[str, Tensor]  # names without what wrappers put before them
    keys: tuple[str, ...]  # of every state dict in the file
    whole: Mapping[Any, Any]  # the whole file
    notes: list[str]

    def left_out(self, taken: Iterable[Tensor]) -> Counter[str]:
        """How many tensors of the file are not among those taken, by its keys."""
        own, counts = set(map(id, taken)), Counter[str]()
        for key, value in self.whole.items():
            is_name = isinstance(value, Tensor) and re.match(rf"{WRAPPERS}([^.]*)", str(key))
            name = is_name[1] if is_name else str(key)
            stack, seen = [value], set()  # a pickled container may hold itself
            while stack:
                item = stack.pop()
                if isinstance(item, Tensor):
                    counts[name] += id(item) not in own
                elif isinstance(item, dict | list | tuple) and id(item) not in seen:
                    seen.add(id(item))
                    stack += item.values() if isinstance(item, dict) else item
        return counts


def is_average(key: str) -> bool:
    """Whether a key says that the moving average of a network is under it."""
    for part in reversed(key.split(".")):  # the last one that says something decides
        words = {word.lower() for word in WORD.findall(part)}
        if words & (AVERAGES | NO_AVERAGES):
            return words.isdisjoint(NO_AVERAGES)
    return False


def read_file(path: Path) -> Any:
    """Read what torch.save or safetensors wrote to `path`, whatever its suffix. Raises BadInput."""
    if is_ours(path):
        raise BadInput(f"{path} is an lddgan checkpoint already: it needs no import")
    return read_safetensors(path)[1] if is_safetensors(path) else read_pickle(path)


def read_state(path: Path, part: Part, keys: Sequence[str], use_raw: bool = False) -> Found:
    """Read the state dict of a generator or autoencoder.

    Of several the one under a key of `keys` is taken, unless it is the other part; else the only
    moving average (the only other one, if `use_raw`).  Raises BadInput if there is none, or no
    preference among several.
    """
    loaded = read_file(path)
    if not isinstance(loaded, Mapping):
        raise BadInput(f"{path} holds a {type(loaded).__name__}, not a state dict")
    check_metadata_kept(loaded, path)
    found = dict(states_in(loaded, path))
    if not found:
        others = [str(k) for k, v in loaded.items() if not is_state_dict({k: v})]
        cause = f"not tensors: {some(others)}" if others else "it has no tensors"
        raise BadInput(f"{path} is no state dict: {cause}")
    parts = {key: part_of(state) for key, state in found.items()}
    holding = [key for key in found if parts[key] == part]
    known = max(found, key=lambda key: parts[key] is not None)  # to say what it is
    named = [key for key in found if key in keys and parts[key] in (part, None)]
    chosen = named or holding or [known]
    if len(chosen) > 1:
        chosen = [key for key in chosen if is_average(key) != use_raw]
    if len(chosen) != 1:
        raise BadInput(
            f"{path} holds {len(holding)} {part}s: {some(holding)}; choose one of them with --key"
        )
    [key] = chosen
    check_kind_of_network(found[key], part, path)
    others = [other for other in holding if other != key]
    took = f"the moving average under {key}" if is_average(key) else key
    instead = f", not {some(others)}" if others else ""
    notes = [f"{path.name}: took {took}{instead}"] if is_average(key) or others else []
    if not any(map(is_average, holding)) and (said := untaken_average(loaded, found.values())):
        notes.append(f"{path.name}: {said}")
    return Found(key, found[key], tuple(found), loaded, notes)


def states_in(
    value: object, path: Path, key: str = "", deep: int = 2
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(dotted key, state dict) of every one in a file, `deep` keys down. Raises BadInput."""
    if is_state_dict(value):
        for network, state in networks_in(value, path).items():
            yield f"{key}.{network}".strip("."), state
    elif isinstance(value, Mapping) and deep:
        for name, inner in value.items():
            yield from states_in(inner, path, f"{key}.{name}".strip("."), deep - 1)


def networks_in(state: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a state dict by the network that their names begin with, prefixes taken off.

    Those that name none are under "", a whole average of latent diffusion beside its network.
    Raises BadInput if some of a network's have other wrappers.
    """
    networks: dict[str, dict[str, Tensor]] = defaultdict(dict)
    firsts: dict[str, re.Match[str]] = {}  # of the names of each network
    for name, tensor in state.items():
        match = PREFIX.match(name)
        if match and name != COUNTER:
            network = re.sub(rf"(^|\.){WRAPPERS}", r"\1", match[1] or "").rstrip(".")
            first = firsts.setdefault(network, match)
            if match[0] != first[0]:
                names = f"{first.string} and {name}"
                raise BadInput(f"{path} mixes two networks: the prefixes of {names} differ")
            networks[network][name[match.end() :]] = tensor
    averages = networks.get("", {})
    for network, raw in list(networks.items()):
        own = [name for name in raw if re.match(rf"(?:{ROOTS})\.", name)]
        found = {name: averages.get(LIT_EMA + name.replace(".", "")) for name in own}
        average = {name: tensor for name, tensor in found.items() if tensor is not None}
        if own and len(average) == len(own):
            networks[f"{network}.{LIT_EMA}".strip(".")] = average
    return networks


def untaken_average(whole: Mapping[Any, Any], states: Iterable[Mapping[str, Tensor]]) -> str:
    """What is to be said of a moving average in a file that has none to be taken, if any."""
    if any(UNTAKEN.match(name) for state in states for name in state):
        return "its moving average is incomplete and was left out"
    inner = (value for value in whole.values() if isinstance(value, Mapping))
    if any("shadow_params" in value for value in (whole, *inner)):
        return "a moving average of another form, a list, is there and was not taken"
    return ""


def is_state_dict(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def part_of(names: Iterable[str]) -> Part | None:
    """Which network a state dict is of, by the names of its tensors. Returns None for others."""
    return next((family.part for family in FAMILIES if family.holds(names)), None)


def check_kind_of_network(state: Mapping[str, Tensor], part: Part, path: Path) -> None:
    """Raise BadInput, saying what it is, if a state dict in a file is of another network."""
    found, begun = part_of(state), (b for b in STRANGERS if any(re.match(b, n) for n in state))
    what = STRANGERS.get(next(begun, ""))
    if found and what in (None, UNET):
        if found == part:
            return
        raise BadInput(f"{path} is the {found}, given as the {part}: are the two files swapped?")
    if what:
        raise BadInput(f"{path} is {what}, not the {part}")
    raise BadInput(f"{path} holds no {part}: its tensors are {some(list(state))}")
