"""Writes files as the published code leaves them: netG_N.pth, content.pth, Lightning .ckpt."""

from __future__ import annotations

import argparse
import io
import json
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lddgan.checkpoint import Model, random_tensor, shapes_of
from lddgan.errors import BadInput
from lddgan.networks.configs import KlConfig, NcsnppConfig
from lddgan.preset import Preset, with_values
from lddgan.presets import get_preset
from lddgan.published.reader import import_published
from tests.reference.weights import value

REFERENCE = Path(__file__).parent / "reference"
State = dict[str, Tensor]
TOLERANCE = 1e-4  # of the largest value (NETWORKS.md)


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference / the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


# ---- state dicts ----


@cache
def official_keys() -> dict[str, dict[str, list[int]]]:
    """ "cifar10/generator" -> name -> shape."""
    return json.loads((REFERENCE / "official_keys.json").read_text())


def recorded(name: str) -> dict[str, Tensor]:
    """The arrays of one recorded case."""
    with np.load(REFERENCE / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def official_state(entry: str, only: str = "") -> State:
    """The weights of the recorded cases; zeros (which take no space) for names without `only`."""
    return {
        name: torch.from_numpy(value(name, tuple(shape)))
        if name.startswith(only)
        else torch.zeros(()).expand(shape)
        for name, shape in official_keys()[entry].items()
    }


def zero_state(entry: str) -> State:
    """The right names and shapes, in a file of a few kilobytes."""
    return official_state(entry, only="nothing")


def tiny_preset(**changes: Any) -> Preset:
    """A preset that runs in milliseconds: image 16x16, latent 4x8x8."""
    digits = get_preset("digits")
    small = NcsnppConfig(
        nf=16, ch_mult=(1, 2), blocks=1, attention=(4,), nz=10, mapping_layers=2, z_emb_dim=24
    )
    autoencoder = KlConfig(ch=32, ch_mult=(1, 1), blocks=1, attention=(8,))
    sizes = {"name": "tiny", "image_size": 16, "latent_channels": 4, "latent_size": 8}
    preset = digits.model_copy(
        update={"generator": small, "autoencoder": autoencoder} | sizes | changes
    )
    return Preset.model_validate(preset.model_dump())


def small_wavelet() -> Preset:
    """The preset of the recorded case wddgan-small."""
    sizes = {"image_size": 64, "latent_size": 32, "discriminator.layers": 4}
    network = {"generator.nf": 32, "generator.ch_mult": (1, 2, 2)}
    return with_values(get_preset("wddgan-celeba_256"), sizes | network)


def network_state(preset: Preset, part: str, salt: str = "") -> State:
    """Random weights of a preset's generator or autoencoder; another salt, other values."""
    return {name: tensor.clone() for name, tensor in drawn_once(preset, part, salt).items()}


@cache
def drawn_once(preset: Preset, part: str, salt: str) -> State:
    shapes = shapes_of(preset, part)
    return {k: torch.from_numpy(random_tensor(salt + k, tuple(v))) for k, v in shapes.items()}


def same_state(network: torch.nn.Module, expected: Mapping[str, Tensor]) -> bool:
    """Whether a network holds exactly these tensors, bit for bit."""
    state = network.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[k], expected[k]) for k in state
    )


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


# ---- files ----


def netg_file(path: Path, state: State, prefix: str = "module.") -> Path:
    """netG_N.pth: a plain state dict, every name prefixed."""
    torch.save(OrderedDict(prefixed(prefix, state)), path)
    return path


def optimizer_state(parameters: State, ema: State | None) -> dict[str, Any]:
    """state_dict() of Adam, with the published EMA in it."""
    states = {}
    for i, name in enumerate(parameters):
        moment = torch.zeros(()).expand(parameters[name].shape)
        states[i] = {"step": torch.tensor(7.0), "exp_avg": moment, "exp_avg_sq": moment}
        if ema is not None and name in ema:
            states[i]["ema"] = ema[name]
    group = {"lr": 1.6e-4, "betas": (0.5, 0.9), "params": list(range(len(states)))}
    return {"state": states, "param_groups": [group]}


def content_file(path: Path, raw: State, ema: State | None, **arguments: Any) -> Path:
    """content.pth: a whole training state."""
    discriminator = {"module.start_conv.weight": torch.zeros(4, 8, 1, 1)}
    torch.save(
        {
            "epoch": 12,
            "global_step": 3456,
            "args": argparse.Namespace(dataset="any", nz=100, lr_g=1.6e-4, **arguments),
            "netG_dict": OrderedDict(prefixed("module.", raw)),
            "optimizerG": optimizer_state(raw, ema),
            "schedulerG": {"T_max": 10, "base_lrs": [1.6e-4], "last_epoch": np.float64(12)},
            "netD_dict": OrderedDict(discriminator),
            "optimizerD": {"state": {}, "param_groups": []},
            "schedulerD": {"T_max": 10},
        },
        path,
    )
    return path


LOSS = {
    "loss.logvar": torch.zeros(()),
    "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 64, 1, 1),
    "loss.discriminator.main.3.num_batches_tracked": torch.tensor(4),
}
DIFFUSION = {
    "betas": torch.zeros(1000),
    "alphas_cumprod": torch.zeros(1000),
    "scale_factor": torch.tensor(1.0),
    "model.diffusion_model.time_embed.0.weight": torch.zeros(8, 8),
    "model.diffusion_model.out.2.bias": torch.zeros(3),
    "model_ema.decay": torch.tensor(0.9999),
    "model_ema.num_updates": torch.tensor(4),
    "cond_stage_model.embedding.weight": torch.zeros(2, 2),
}


def kl_file(path: Path, state: State) -> Path:
    """A Lightning file of an autoencoder alone."""
    return lightning_file(path, state | LOSS)


def latent_diffusion_file(path: Path, state: State) -> Path:
    """A Lightning file of a whole latent-diffusion model."""
    return lightning_file(path, DIFFUSION | prefixed("first_stage_model.", state | LOSS))


def lightning_file(path: Path, state: State) -> Path:
    """A Lightning file, with its framework's classes in it by name."""
    with foreign_classes(
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.nodes.AnyNode",
        dicts=("pytorch_lightning.utilities.parsing.AttributeDict",),
    ) as foreign:
        config = foreign["DictConfig"]()
        config._metadata = foreign["ContainerMetadata"]()
        config._metadata.__dict__.update(ref_type=Any, object_type=dict, cache=defaultdict(dict))
        config._content = {"ch": foreign["AnyNode"](), "path": Path("/data")}
        config._parent = config  # configurations refer to themselves
        callbacks = {
            foreign["ModelCheckpoint"]: {
                "monitor": "val/rec_loss",
                "best_model_score": torch.tensor(0.25),
                "current_score": np.float32(0.5),
            },
            foreign["EarlyStopping"]: {"wait_count": 0, "best_score": np.array([1.0])},
        }
        torch.save(
            {
                "epoch": 3,
                "global_step": 1000,
                "pytorch-lightning_version": "1.4.2",
                "state_dict": OrderedDict(state),
                "callbacks": callbacks,
                "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
                "lr_schedulers": [],
                "hyper_parameters": foreign["AttributeDict"](
                    ddconfig=config, lr=np.float64(4.5e-6)
                ),
            },
            path,
        )
    return path


@contextmanager
def foreign_classes(*names: str, dicts: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Classes that pickle under the full names of libraries that are not installed."""
    before = dict(sys.modules)
    classes = {}
    try:
        for full in (*names, *dicts):
            module, _, name = full.rpartition(".")
            steps = module.split(".")
            for i in range(len(steps)):
                parent = ".".join(steps[: i + 1])
                sys.modules.setdefault(parent, types.ModuleType(parent))
            base = dict if full in dicts else object
            classes[name] = type(name, (base,), {"__module__": module})
            setattr(sys.modules[module], name, classes[name])
        yield classes
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]


def rewrite_pickle(path: Path, old: bytes, new: bytes) -> Path:
    """Replace bytes in the pickle within a torch file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(buffer, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            target.writestr(item.filename, data)
    path.write_bytes(buffer.getvalue())
    return path


# ---- a tiny model ----


class Tiny:
    """Files of the tiny preset, and the import with one of them exchanged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.preset = tiny_preset()
        self.state = network_state(self.preset, "generator")
        self.autoencoder = network_state(self.preset, "autoencoder")
        self.netg = netg_file(folder / "netG_1.pth", self.state)
        self.ckpt = kl_file(folder / "kl.ckpt", self.autoencoder)

    def load(self, **given: Any) -> Model:
        arguments = {"generator": self.netg, "autoencoder": self.ckpt} | given
        return import_published(arguments.pop("dataset", self.preset), **arguments)

    def refuses(self, *fragments: str, **given: Any) -> None:
        with pytest.raises(BadInput) as caught:
            self.load(**given)
        message = str(caught.value)
        assert all(fragment in message for fragment in fragments), message
        assert "\n" not in message
        assert len(message) < 500

    def refuses_generator(self, state: State, *fragments: str) -> None:
        path = netg_file(self.folder / "other.pth", state)
        self.refuses("other.pth", *fragments, generator=path)
