"""Checkpoints of the published LDDGAN code -> our Model, every tensor accounted for.

A generator is a `netG_N.pth` (a state dict that is the moving average already) or a `content.pth`
(a training state, whose average hides in the optimiser).  An autoencoder is a Lightning file: bare,
or inside a whole latent-diffusion model.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from lddgan.checkpoint import NAMED_AT_MOST, Model, build_model, check_tensors
from lddgan.errors import BadInput
from lddgan.files import sha256_of_file
from lddgan.networks.autoencoder import Autoencoder
from lddgan.networks.generator import Generator
from lddgan.presets import Preset, get_preset
from lddgan.published.pickles import SHOWN, printable, read_pickle
from lddgan.published.shapes import FACTS, differences, identify, kind_of, preset_facts, with_facts

PARALLEL = "module."  # what DistributedDataParallel puts before every name
WRAPPED = ("netG_dict", "state_dict")  # where a training state, a Lightning file keep the weights
STAGE = "first_stage_model."  # the autoencoder within a latent-diffusion model
NEEDLESS = ("loss.", "model_ema.")  # in an autoencoder's file, beside the autoencoder
NEEDLESS_IN_LATENT_DIFFUSION = (
    "model.diffusion_model.",
    "model_ema.",
    "cond_stage_model.",
    "loss.",
    "first_stage_model.loss.",
    "first_stage_model.model_ema.",
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "scale_factor",
)
ARGUMENTS = {"num_timesteps": "steps", "beta_min": "beta_min", "beta_max": "beta_max"}
NETWORKS = {"generator": Generator, "autoencoder": Autoencoder}
FEW = 10  # a file with fewer than 1 in FEW tensors wrong is a damaged one, not another network


@dataclass(frozen=True)
class Part:
    """One network out of a file."""

    preset: Preset  # with what the file says about this network
    tensors: Mapping[str, Tensor]  # float32, names and shapes of `preset`
    record: Mapping[str, Any]  # for the provenance


def import_published(
    dataset: str | Preset,
    generator: str | os.PathLike[str],
    autoencoder: str | os.PathLike[str] | None = None,
    *,
    use_raw: bool = False,
) -> Model:
    """Read a published generator and autoencoder.

    `dataset` is the name of a preset, or a preset of one's own.  From a training state
    (`content.pth`) the moving average is taken; `use_raw` takes `netG_dict` instead.  `nz`, block
    counts, mapping depth and number of codes may differ from the preset: then the model's preset is
    a copy with the file's values, and `provenance["notes"]` says so.

    Raises BadInput, with the cause, for a file that is missing, damaged, of another kind or data
    set, has a tensor too many, too few, misshapen or not finite, or asks to run code.
    """
    preset = get_preset(dataset) if isinstance(dataset, str) else dataset
    if autoencoder is None:
        raise BadInput(
            f"{preset.name} denoises latents: give its autoencoder too (--autoencoder model.ckpt)"
        )
    first = import_generator(preset, Path(generator), use_raw)
    second = import_autoencoder(first.preset, Path(autoencoder))
    changes = preset_changes(preset, second.preset)
    provenance = {
        "source": "published",
        "dataset": preset.name,
        "ema": first.record["weights"] != "netG_dict",
        "generator": first.record,
        "autoencoder": second.record,
        "differs_from_preset": {key: new for key, (_, new) in changes.items()},
        "notes": [
            f"{key} is {new}, where the {preset.name} preset has {old}"
            for key, (old, new) in changes.items()
        ]
        + first.record["notes"],
    }
    return build_model(second.preset, first.tensors, second.tensors, provenance)


def import_generator(preset: Preset, path: Path, use_raw: bool) -> Part:
    """The generator in a netG_N.pth or content.pth. Raises BadInput."""
    key, state, around = read_state(path)
    check_kind_of_network(state, "generator", path)
    preset = with_training_arguments(fit(preset, state, "generator", path), around, path)
    left_out = count_tensors(around)
    weights, notes = "netG file (the moving average)", []
    tensors = checked(preset, state, "generator", path)
    if key == "netG_dict" and use_raw:
        weights, notes = "netG_dict", [f"{path.name}: took netG_dict, not the moving average"]
    elif key == "netG_dict":
        weights = "optimizerG (the moving average)"
        average = moving_average(around.get("optimizerG"), list(tensors), path)
        tensors = checked(preset, average, "generator", path)
        left_out["optimizerG"] -= len(tensors)
        left_out["netG_dict"] = len(state)
    return Part(preset, tensors, record(path, left_out) | {"weights": weights, "notes": notes})


def import_autoencoder(preset: Preset, path: Path) -> Part:
    """The autoencoder in a Lightning file or a plain state dict. Raises BadInput."""
    _, state, around = read_state(path)
    check_kind_of_network(state, "autoencoder", path)
    state, needless = split_autoencoder(state, path)
    preset = fit(preset, state, "autoencoder", path)
    tensors = checked(preset, state, "autoencoder", path)
    return Part(preset, tensors, record(path, count_tensors(around) + needless))


def record(path: Path, left_out: Mapping[str, int]) -> dict[str, Any]:
    """Where a part comes from, for the provenance."""
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
    others = [k for k, v in state.items() if not (is_name(k) and isinstance(v, Tensor))]
    if others or not state:
        raise BadInput(
            f"{path} is no state dict: "
            + (
                f"not tensors: {some([printable(str(k)) for k in others])}"
                if others
                else "it has no tensors"
            )
        )
    return key, without_parallel(state, path), around


def is_name(key: object) -> bool:
    """Whether a key can be a parameter's name (and can be printed)."""
    return isinstance(key, str) and key.isprintable() and len(key) <= SHOWN


def without_parallel(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state dict with `module.` taken off every name. All names have it, or none."""
    bare = [name for name in state if not name.startswith(PARALLEL)]
    if bare and len(bare) < len(state):
        raise BadInput(
            f"{path} mixes two networks: {len(state) - len(bare)} tensors are named "
            f"'{PARALLEL}...', {len(bare)} are not: {some(bare)}"
        )
    return {name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}


def check_kind_of_network(state: Mapping[str, Tensor], part: str, path: Path) -> None:
    kind = kind_of(state)
    if kind is None:
        raise BadInput(f"{path} holds no {part}: its tensors are {some(list(state))}")
    if kind == "discriminator":
        raise BadInput(f"{path} is a discriminator; give the {part}")
    if kind != part:
        raise BadInput(
            f"{path} is {'an' if kind[0] == 'a' else 'a'} {kind}, given as the {part}: "
            "are the two files swapped?"
        )


def split_autoencoder(
    state: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], Counter[str]]:
    """(the autoencoder's tensors, how many were left out by prefix)."""
    inside = any(name.startswith(STAGE) for name in state)
    needless = NEEDLESS_IN_LATENT_DIFFUSION if inside else NEEDLESS
    own: dict[str, Tensor] = {}
    left_out: Counter[str] = Counter()
    unknown = []
    for name, tensor in state.items():
        prefix = next((p for p in needless if name == p or is_under(name, p)), "")
        if prefix:
            left_out[prefix] += 1
        elif inside and not name.startswith(STAGE):
            unknown.append(name)
        else:
            own[name.removeprefix(STAGE) if inside else name] = tensor
    if unknown:
        raise BadInput(f"{path} has {len(unknown)} tensors of unknown purpose: {some(unknown)}")
    return own, left_out


def is_under(name: str, prefix: str) -> bool:
    return prefix.endswith(".") and name.startswith(prefix)


def fit(preset: Preset, state: Mapping[str, Tensor], part: str, path: Path) -> Preset:
    """`preset` with the free facts of the file. Raises BadInput if the file is for another one.

    A file that is almost right passes here, so that `checked` can name its wrong tensors.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if any(".convH_0." in name for name in shapes):
        raise BadInput(
            f"{path} is a WDDGAN generator, which works on wavelet coefficients; "
            f"you asked for {preset.name}"
        )
    facts = FACTS[part](shapes)
    if facts is None:
        return preset
    expected = preset_facts(preset, part)
    allowed, forbidden = differences(facts, expected, part)
    if not forbidden:
        return with_facts(preset, allowed, part)
    identity = identify(facts, part)
    if identity:
        raise BadInput(f"{path} is {identity}; you asked for {preset.name}")
    right = expected_shapes(preset, part)
    wrong = sum(shapes.get(name) != right.get(name) for name in shapes.keys() | right.keys())
    if wrong * FEW < len(right):
        return preset
    listed = ", ".join(f"{key} {value} (not {expected[key]})" for key, value in forbidden.items())
    raise BadInput(f"{path} is not the {preset.name} {part}, nor another known one: {listed}")


def expected_shapes(preset: Preset, part: str) -> dict[str, torch.Size]:
    """Names and shapes of a network's tensors, in the order of its parameters."""
    with torch.device("meta"):
        return {k: v.shape for k, v in NETWORKS[part](preset).state_dict().items()}


def checked(
    preset: Preset, state: Mapping[str, Tensor], part: str, path: Path
) -> dict[str, Tensor]:
    """The tensors as float32, in the network's order. Raises BadInput if one is wrong."""
    odd = [
        name
        for name, tensor in state.items()
        if not tensor.is_floating_point()
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"
    ]
    if odd:
        raise BadInput(f"the {part} in {path} has tensors that are not plain floats: {some(odd)}")
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in state.items()}
    expected = expected_shapes(preset, part)
    check_tensors(tensors, expected, f"{part} in {path}")
    return {name: tensors[name] for name in expected}


def moving_average(optimizer: object, names: list[str], path: Path) -> dict[str, Tensor]:
    """The averaged parameters that the published EMA keeps in the optimiser's state.

    `names` are those of the parameters, in the order in which the optimiser numbers them.
    """
    states = optimizer.get("state") if isinstance(optimizer, dict) else None
    states = states if isinstance(states, dict) else {}
    found = {
        i: state["ema"]
        for i, state in states.items()
        if isinstance(state, dict) and isinstance(state.get("ema"), Tensor)
    }
    if set(found) != set(range(len(names))):
        has = f"averages for {len(found)} of {len(names)}" if found else "no averages of the"
        raise BadInput(
            f"{path} has {has} parameters (optimizerG), and its netG_dict is not the average: "
            "give a netG_N.pth, or accept netG_dict with --raw-generator (use_raw=True)"
        )
    return {name: found[i] for i, name in enumerate(names)}


def with_training_arguments(preset: Preset, around: Mapping[Any, Any], path: Path) -> Preset:
    """`preset` with the steps and schedule of a training state's arguments, which win."""
    given = next((v for v in around.values() if isinstance(v, argparse.Namespace)), None)
    found = {ours: getattr(given, name) for name, ours in ARGUMENTS.items() if hasattr(given, name)}
    try:
        return Preset.model_validate(preset.model_dump() | found)
    except ValidationError as error:
        cause = error.errors()[0]["msg"]
        raise BadInput(f"{path} was trained with arguments that do not fit: {cause}") from error


def preset_changes(old: Preset, new: Preset) -> dict[str, tuple[Any, Any]]:
    """Where two presets differ: "generator.nz" -> (old, new)."""
    before, after = flat(old.model_dump()), flat(new.model_dump())
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    leaves: dict[str, Any] = {}
    for key, value in sections.items():
        if isinstance(value, dict):
            leaves |= {f"{key}.{name}": leaf for name, leaf in flat(value).items()}
        else:
            leaves[key] = value
    return leaves


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


def some(names: list[str]) -> str:
    """The first few of a list of names."""
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + more
