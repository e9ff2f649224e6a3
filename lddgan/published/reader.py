"""Checkpoints of the published code of LDDGAN, DDGAN, WDDGAN -> our Model, no tensor left over.

A generator is a `netG_N.pth` (a state dict that is the moving average already) or a `content.pth`
(a training state, whose average hides in the optimiser); an autoencoder is a Lightning file, or of
diffusers.  Either may have been saved again by others, in their wrapper or as safetensors.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lddgan.checkpoint import Model, build_model, check_tensors, shapes_of, some
from lddgan.errors import BadInput
from lddgan.files import sha256_of_file
from lddgan.preset import Preset, check_learned, differences, flat, with_values
from lddgan.presets import get_preset
from lddgan.published.diffusers import check_config, renamed, weights_of
from lddgan.published.latent_diffusion import split_autoencoder
from lddgan.published.shapes import Family, Part
from lddgan.published.state_dicts import FAMILIES, is_average, read_state

RAW: Final = "netG_dict"  # in a training state, whose optimiser has the average
OPTIMIZER: Final = "optimizerG"
ARGUMENTS: Final = {"num_timesteps": "steps", "beta_min": "beta_min", "beta_max": "beta_max"}
NOT_FOR_SAMPLING: Final = {"name", "discriminator", "training", "autoencoder_training", "paper"}


@dataclass(frozen=True)
class Network:
    """One network out of a file."""

    preset: Preset  # with what the file says about this network
    tensors: Mapping[str, Tensor]  # float32, names and shapes of `preset`
    record: Mapping[str, Any]  # for the provenance
    keys: tuple[str, ...]  # that its file has


def import_published(
    dataset: str | Preset,
    generator: str | os.PathLike[str],
    autoencoder: str | os.PathLike[str] | None = None,
    *,
    use_raw: bool = False,
    keys: Sequence[str] = (),
) -> Model:
    """Read a published generator and the autoencoder of its latents, where it has one.

    `dataset` is the name of a preset, or a preset of one's own.  From a training state
    (`content.pth`) the moving average is taken; `use_raw` takes `netG_dict` instead.  `keys` choose
    where a file holds several networks.  Where a file has another `nz`, number of blocks, mapping
    layers or codes, so has the model's preset, and `provenance["notes"]` says so, as it does where
    another preset has a generator of the same shapes.

    Raises BadInput, with the cause, for a file that does not hold exactly the preset's network.
    """
    preset = get_preset(dataset) if isinstance(dataset, str) else dataset
    if isinstance(dataset, str) and preset.paper is None:
        raise BadInput(f"nothing was published for {dataset}, which lddgan brings trained")
    networks = {"generator": import_generator(preset, Path(generator), use_raw, keys)}
    own = networks["generator"].preset
    if autoencoder is not None:
        networks["autoencoder"] = import_autoencoder(own, Path(autoencoder), keys)
        own = networks["autoencoder"].preset
    elif own.autoencoder.learned:
        raise BadInput(f"{own.name} needs the autoencoder of its latents too: give --autoencoder")
    check_keys(keys, *networks.values())
    provenance = {
        "source": "published",
        "dataset": preset.name,
        "ema": "moving average" in networks["generator"].record["weights"],
        "differs_from_preset": differences(preset, own),
        "notes": notes_of(preset, *networks.values()),
    } | {part: network.record for part, network in networks.items()}
    tensors = {part: network.tensors for part, network in networks.items()}
    return build_model(own, tensors["generator"], tensors.get("autoencoder", {}), provenance)


def import_generator(
    preset: Preset, path: Path, use_raw: bool, keys: Sequence[str] = ()
) -> Network:
    """Read the generator in a netG_N.pth, content.pth or another wrapper. Raises BadInput."""
    family = family_of(preset, "generator")
    found = read_state(path, "generator", keys, use_raw)
    key, taken = found.key, found.state
    preset = with_training_arguments(fit(preset, taken, "generator", path), found.whole, path)
    tensors = plain_floats(preset, taken, "generator", path)
    in_optimizer = not is_average(key) and (key == RAW or OPTIMIZER in found.whole)
    if in_optimizer and not use_raw:
        weights = f"{OPTIMIZER} (the moving average)"
        taken = moving_average(found.whole.get(OPTIMIZER), list(tensors), key, path)
        tensors = plain_floats(preset, taken, "generator", path)
    elif is_average(key) or not key:
        weights = f"{key or 'netG file'} (the moving average)"
    else:
        weights, is_not = key, "not" if in_optimizer else "which may not be"
        found.notes.append(f"{path.name}: took {key}, {is_not} the moving average")
    for twin in family.twins(preset):
        trained = with_training_arguments(twin, found.whole, path)
        found.notes.append(f"{path.name} {choice_between(preset, trained)}")
    record = record_of(path, found.left_out(taken.values()), found.notes)
    return Network(preset, tensors, record | {"weights": weights}, found.keys)


def import_autoencoder(preset: Preset, path: Path, keys: Sequence[str] = ()) -> Network:
    """Read the autoencoder of a Lightning file, of diffusers or a plain one. Raises BadInput."""
    check_learned(preset, "leave out --autoencoder")
    path = weights_of(path)
    found = read_state(path, "autoencoder", keys)
    left_out = found.left_out(found.state.values())
    state, beside = split_autoencoder(found.state, path)
    own = renamed(state)
    if own.keys() != state.keys():
        found.notes.extend(check_config(preset, path))
    preset = fit(preset, own, "autoencoder", path)
    tensors = plain_floats(preset, own, "autoencoder", path)
    return Network(preset, tensors, record_of(path, left_out + beside, found.notes), found.keys)


def record_of(path: Path, left_out: Counter[str], notes: list[str]) -> dict[str, Any]:
    """Where a network comes from, for the provenance."""
    sha256 = sha256_of_file(path)
    return {"file": path.name, "sha256": sha256, "left_out": dict(+left_out), "notes": notes}


def check_keys(keys: Sequence[str], *networks: Network) -> None:
    """Raise BadInput if no file of `networks` has one of the keys that were asked for."""
    known = list(dict.fromkeys(key for network in networks for key in network.keys if key))
    for key in keys:
        if key not in known:
            raise BadInput(f"no file has the key {key}; there are {some(known) or 'none'}")


def notes_of(preset: Preset, *networks: Network) -> list[str]:
    """What is to be said of networks that were read for `preset`, in sentences."""
    before = flat(preset.model_dump())
    return [
        f"{key} is {value}, where the {preset.name} preset has {before[key]}"
        for key, value in differences(preset, networks[-1].preset).items()
    ] + [sentence for network in networks for sentence in network.record["notes"]]


def choice_between(preset: Preset, twin: Preset) -> str:
    """Say that a file is taken as `preset`, not as its twin, and what of sampling that decides."""
    ours, theirs = (flat(each.model_dump(exclude=NOT_FOR_SAMPLING)) for each in (preset, twin))
    decides = "; ".join(
        f"{key.rpartition('.')[2]} {in_words(value)}, not {in_words(theirs[key])}"
        for key, value in ours.items()
        if theirs.get(key, value) != value
    )
    taken = f"has the shapes of {twin.name} too: taken as {preset.name}, as asked"
    return f"{taken} ({decides})" if decides else taken


def in_words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


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
    identity = family.identify(shapes) if misfits else None
    if identity:
        raise BadInput(f"{path} is {identity}; you asked for {preset.name}")
    is_incomplete = shapes.items() <= shapes_of(variant, part).items()
    if misfits > 0.25 and not is_incomplete:  # else `plain_floats` names its wrong tensors
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


def moving_average(optimizer: object, names: list[str], key: str, path: Path) -> dict[str, Tensor]:
    """The averages that the published EMA keeps in the optimiser's state, which numbers `names`."""
    found = {}
    match optimizer:
        case {"state": dict(states)}:
            emas = {i: state.get("ema") for i, state in states.items() if isinstance(state, dict)}
            found = {i: ema for i, ema in emas.items() if isinstance(ema, Tensor)}
    if set(found) != set(range(len(names))):
        raise BadInput(
            f"{path} has averages of {len(found)} of {len(names)} parameters, and its {key} is "
            "not the average: give a netG_N.pth, or --raw-generator to accept it"
        )
    return {name: found[i] for i, name in enumerate(names)}


def with_training_arguments(preset: Preset, whole: Mapping[Any, Any], path: Path) -> Preset:
    """`preset` with the steps and schedule of a training state's arguments. Raises BadInput."""
    values = (vars(v) if isinstance(v, argparse.Namespace) else v for v in whole.values())
    found = {
        ours: given[name]
        for given in values
        for name, ours in ARGUMENTS.items()
        if isinstance(given, dict) and name in given
    }
    try:
        return with_values(preset, found)
    except BadInput as error:
        raise BadInput(f"{path} was trained with arguments that do not fit: {error}") from error
