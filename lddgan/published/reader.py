"""Checkpoints of the published LDDGAN code -> our Model, every tensor accounted for.

A generator is a `netG_N.pth` (a state dict that is the moving average already) or a `content.pth`
(a training state, whose average hides in the optimiser); an autoencoder is a Lightning file.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lddgan.checkpoint import Model, build_model, check_tensors, shapes_of, some
from lddgan.errors import BadInput
from lddgan.files import sha256_of_file
from lddgan.preset import Preset, flat, with_values
from lddgan.presets import get_preset
from lddgan.published.latent_diffusion import LATENT_DIFFUSION, split_autoencoder
from lddgan.published.ncsnpp import NCSNPP
from lddgan.published.pickles import printable, read_pickle
from lddgan.published.shapes import Family, Part

FAMILIES: Final = (NCSNPP, LATENT_DIFFUSION)
PARALLEL: Final = "module."  # what DistributedDataParallel puts before every name
WRAPPED: Final = ("netG_dict", "state_dict")  # of a training state, of a Lightning file
ARGUMENTS: Final = {"num_timesteps": "steps", "beta_min": "beta_min", "beta_max": "beta_max"}


@dataclass(frozen=True)
class Network:
    """One network out of a file."""

    preset: Preset  # with what the file says about this network
    tensors: Mapping[str, Tensor]  # float32, names and shapes of `preset`
    record: Mapping[str, Any]  # for the provenance


def import_published(
    dataset: str | Preset,
    generator: str | os.PathLike[str],
    autoencoder: str | os.PathLike[str],
    *,
    use_raw: bool = False,
) -> Model:
    """Read a published generator and autoencoder.

    `dataset` is the name of a preset, or a preset of one's own.  From a training state
    (`content.pth`) the moving average is taken; `use_raw` takes `netG_dict` instead.  Where a file
    has another `nz`, number of blocks, mapping layers or codes, so has the model's preset, and
    `provenance["notes"]` says so.

    Raises BadInput, with the cause, for a file that is missing, damaged, of another kind or data
    set, has a tensor too many, too few, misshapen or not finite, or asks to run code.
    """
    preset = get_preset(dataset) if isinstance(dataset, str) else dataset
    first = import_generator(preset, Path(generator), use_raw)
    second = import_autoencoder(first.preset, Path(autoencoder))
    before, after = flat(preset.model_dump()), flat(second.preset.model_dump())
    changes = {key: value for key, value in after.items() if value != before[key]}
    provenance = {
        "source": "published",
        "dataset": preset.name,
        "ema": first.record["weights"] != "netG_dict",
        "generator": first.record,
        "autoencoder": second.record,
        "differs_from_preset": changes,
        "notes": [
            f"{key} is {value}, where the {preset.name} preset has {before[key]}"
            for key, value in changes.items()
        ]
        + first.record["notes"],
    }
    return build_model(second.preset, first.tensors, second.tensors, provenance)


def import_generator(preset: Preset, path: Path, use_raw: bool) -> Network:
    """Read the generator in a netG_N.pth or content.pth. Raises BadInput."""
    key, state, around = read_state(path)
    check_kind_of_network(state, "generator", path)
    preset = with_training_arguments(fit(preset, state, "generator", path), around, path)
    left_out = count_tensors(around)
    weights, notes = "netG file (the moving average)", []
    tensors = plain_floats(preset, state, "generator", path)
    if key == "netG_dict" and use_raw:
        weights, notes = "netG_dict", [f"{path.name}: took netG_dict, not the moving average"]
    elif key == "netG_dict":
        weights = "optimizerG (the moving average)"
        average = moving_average(around.get("optimizerG"), list(tensors), path)
        tensors = plain_floats(preset, average, "generator", path)
        left_out["optimizerG"] -= len(tensors)
        left_out["netG_dict"] = len(state)
    return Network(preset, tensors, record(path, left_out) | {"weights": weights, "notes": notes})


def import_autoencoder(preset: Preset, path: Path) -> Network:
    """Read the autoencoder in a Lightning file or a plain state dict. Raises BadInput."""
    _, state, around = read_state(path)
    check_kind_of_network(state, "autoencoder", path)
    state, left_out = split_autoencoder(state, path)
    preset = fit(preset, state, "autoencoder", path)
    tensors = plain_floats(preset, state, "autoencoder", path)
    return Network(preset, tensors, record(path, count_tensors(around) + left_out))


def record(path: Path, left_out: Mapping[str, int]) -> dict[str, Any]:
    """Where a network comes from, for the provenance."""
    return {
        "file": path.name,
        "sha256": sha256_of_file(path),
        "left_out": {prefix: count for prefix, count in left_out.items() if count},
    }


def read_state(path: Path) -> tuple[str | None, dict[str, Tensor], dict[Any, Any]]:
    """(key it was under, state dict without `module.`, what was around it) in a pickled file."""
    loaded = read_pickle(path)
    key = next((k for k in WRAPPED if isinstance(loaded, dict) and k in loaded), None)
    state = loaded if key is None else loaded[key]
    if not isinstance(state, dict):
        raise BadInput(f"{path} holds a {type(state).__name__}, not a state dict")
    around = {} if key is None else {k: v for k, v in loaded.items() if k != key}
    if not state:
        raise BadInput(f"{path} is no state dict: it has no tensors")
    others = [
        printable(str(k))
        for k, v in state.items()
        if not (isinstance(v, Tensor) and isinstance(k, str) and k == printable(k))
    ]
    if others:
        raise BadInput(f"{path} is no state dict: not tensors: {some(others)}")
    return key, without_parallel(state, path), around


def without_parallel(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state dict with `module.` taken off every name. All names have it, or none."""
    bare = [name for name in state if not name.startswith(PARALLEL)]
    if bare and len(bare) < len(state):
        raise BadInput(f"{path} mixes two networks: '{PARALLEL}' is not before {some(bare)}")
    return {name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}


def check_kind_of_network(state: Mapping[str, Tensor], part: Part, path: Path) -> None:
    """Raise BadInput if the names in a file are those of another network than `part`."""
    found = next((family.part for family in FAMILIES if family.holds(state)), None)
    if found is None:
        raise BadInput(f"{path} holds no {part}: its tensors are {some(list(state))}")
    if found != part:
        raise BadInput(f"{path} is the {found}, given as the {part}: are the two files swapped?")


def family_of(preset: Preset, part: Part) -> Family:
    """The published files that can fill a preset's network. Raises BadInput if there are none."""
    kind = getattr(preset, part).kind
    for family in FAMILIES:
        if family.part == part and kind in family.kinds:
            return family
    raise BadInput(f"no published {part} of the kind '{kind}' is known, which {preset.name} has")


def fit(preset: Preset, state: Mapping[str, Tensor], part: Part, path: Path) -> Preset:
    """`preset` with the file's own numbers. Raises BadInput if the file is for another one."""
    family = family_of(preset, part)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    variant = family.variant(preset, shapes)
    misfits = family.misfits(variant, shapes)
    identity = family.identify(shapes, variant) if misfits else None
    if identity:
        raise BadInput(f"{path} is {identity}; you asked for {preset.name}")
    if misfits > 0.25:  # with fewer it is damaged, and `plain_floats` names its wrong tensors
        raise BadInput(f"{path} is not the {preset.name} {part}, nor another known one")
    return variant


def plain_floats(
    preset: Preset, state: Mapping[str, Tensor], part: Part, path: Path
) -> dict[str, Tensor]:
    """Convert tensors to float32, in the network's order. Raises BadInput if one is wrong."""
    odd = [
        name
        for name, tensor in state.items()
        if not (tensor.layout == torch.strided and tensor.is_cpu and tensor.is_floating_point())
    ]
    if odd:
        raise BadInput(f"the {part} in {path} has tensors that are not plain floats: {some(odd)}")
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in state.items()}
    expected = shapes_of(preset, part)
    check_tensors(tensors, expected, f"{part} in {path}")
    return {name: tensors[name] for name in expected}


def moving_average(optimizer: object, names: list[str], path: Path) -> dict[str, Tensor]:
    """The averages that the published EMA keeps in the optimiser's state, which numbers `names`."""
    states = optimizer.get("state") if isinstance(optimizer, dict) else None
    states = states if isinstance(states, dict) else {}
    found = {
        i: state["ema"]
        for i, state in states.items()
        if isinstance(state, dict) and isinstance(state.get("ema"), Tensor)
    }
    if set(found) != set(range(len(names))):
        raise BadInput(
            f"{path} has averages of {len(found)} of {len(names)} parameters, and its netG_dict is "
            "not the average: give a netG_N.pth, or --raw-generator to accept it"
        )
    return {name: found[i] for i, name in enumerate(names)}


def with_training_arguments(preset: Preset, around: Mapping[Any, Any], path: Path) -> Preset:
    """`preset` with the steps and schedule of a training state's arguments. Raises BadInput."""
    given = next((v for v in around.values() if isinstance(v, argparse.Namespace)), None)
    found = {ours: getattr(given, name) for name, ours in ARGUMENTS.items() if hasattr(given, name)}
    try:
        return with_values(preset, found)
    except BadInput as error:
        raise BadInput(f"{path} was trained with arguments that do not fit: {error}") from error


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
