"""Checkpoints: one `.safetensors` file with `generator.*` (EMA), `autoencoder.*` and its preset.

An autoencoder alone is such a file without `generator.*`.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor, nn

from lddgan.errors import BadInput, command
from lddgan.files import atomic_write, sha256_of_bytes
from lddgan.networks.autoencoder import Autoencoder
from lddgan.networks.generator import Generator
from lddgan.networks.registry import create
from lddgan.preset import Preset
from lddgan.text import in_json

FORMAT = "lddgan-checkpoint-1"
AUTOENCODER_FORMAT = "lddgan-autoencoder-1"  # format of an autoencoder alone


@dataclass(frozen=True)
class Model:
    """A generator and its autoencoder, in evaluation mode."""

    preset: Preset
    generator: Generator
    autoencoder: Autoencoder
    provenance: Mapping[str, Any] = field(default_factory=dict)  # where the weights come from

    @torch.no_grad()
    def decode(self, x_0: Tensor) -> Tensor:
        """Latent x_0 [B,C,h,w] -> image float32 [B,3,H,W], clamped to [-1,1]."""
        return self.autoencoder.decode(x_0 * self.preset.scale_factor).clamp(-1, 1)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Image [B,3,H,W] in [-1,1] -> latent x_0 [B,C,h,w], divided by the scale factor."""
        return self.autoencoder.encode(image) / self.preset.scale_factor

    @torch.no_grad()
    def codes(self, x_0: Tensor) -> Tensor | None:
        """Index of the code at every position of x_0, int64 [B,h*w]; None without a codebook."""
        return self.autoencoder.codes(x_0 * self.preset.scale_factor)

    @property
    def has_random_weights(self) -> bool:
        return bool(self.provenance.get("random_weights"))


@dataclass(frozen=True)
class TrainedAutoencoder:
    """A trained autoencoder in evaluation mode; its preset has the scale factor of its latents."""

    preset: Preset
    autoencoder: Autoencoder
    provenance: Mapping[str, Any] = field(default_factory=dict)


def build_model(
    preset: Preset,
    generator: Mapping[str, Tensor],
    autoencoder: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
) -> Model:
    """Networks of `preset` holding exactly these tensors. Raises BadInput as `check_tensors`."""
    networks = filled("generator", preset, generator), filled("autoencoder", preset, autoencoder)
    return Model(preset, *networks, provenance)


def build_autoencoder(
    preset: Preset, autoencoder: Mapping[str, Tensor], provenance: Mapping[str, Any]
) -> TrainedAutoencoder:
    """The autoencoder of `preset` holding exactly these tensors. Raises as `build_model`."""
    return TrainedAutoencoder(preset, filled("autoencoder", preset, autoencoder), provenance)


def filled(part: str, preset: Preset, tensors: Mapping[str, Tensor]) -> Any:
    """The network of a preset with exactly these tensors, in evaluation mode. Raises BadInput."""
    with torch.device("meta"):
        network: nn.Module = create(part, preset)
    check_tensors(tensors, {k: v.shape for k, v in network.state_dict().items()}, part)
    materialise(network, tensors)
    return network.eval()


def materialise(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network made on the meta device its tensors, and its constant buffers their values."""
    network.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
    for module in network.modules():
        reset = getattr(module, "reset_buffers", None)
        if reset is not None:
            reset()
    network.requires_grad_(False)


def check_tensors(
    found: Mapping[str, Tensor], expected: Mapping[str, torch.Size], what: str
) -> None:
    """Raise BadInput unless `found` has exactly the expected names and shapes, all finite."""
    problems = {
        "missing": [k for k in expected if k not in found],
        "unexpected": [k for k in found if k not in expected],
        "misshapen": [
            f"{k} is {list(found[k].shape)}, not {list(shape)}"
            for k, shape in expected.items()
            if k in found and found[k].shape != shape
        ],
        "with NaN or Inf": [  # numpy finds them many times faster than torch on busy cores
            k for k, v in found.items() if not np.isfinite(v.float().numpy()).all()
        ],
    }
    for problem, names in problems.items():
        if names:
            raise BadInput(f"the {what} has {len(names)} tensors {problem}: {some(names)}")


def some(names: Sequence[str]) -> str:
    """The first five of a list of names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def save_checkpoint(path: str | os.PathLike[str], model: Model | TrainedAutoencoder) -> Path:
    """Write `model` to `path` atomically. Raises LddganError if the disk does not take it."""
    tensors = {f"autoencoder.{k}": v for k, v in model.autoencoder.state_dict().items()}
    if isinstance(model, Model):
        tensors |= {f"generator.{k}": v for k, v in model.generator.state_dict().items()}
    metadata = {
        "format": FORMAT if isinstance(model, Model) else AUTOENCODER_FORMAT,
        "preset": model.preset.model_dump_json(),
        "provenance": json.dumps(in_json(model.provenance), sort_keys=True),
    }
    metadata["sha256"] = sha256_of_content(metadata, tensors)
    payload = safetensors_save({k: v.contiguous() for k, v in tensors.items()}, metadata)
    return atomic_write(Path(path), payload)


def digest_of(trained: TrainedAutoencoder) -> str:
    """Digest of an autoencoder's tensors, whatever file they came from."""
    return sha256_of_content({}, {k: v.cpu() for k, v in trained.autoencoder.state_dict().items()})


def sha256_of_content(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Digest over metadata, names, dtypes, shapes and values, independent of the file's order."""
    lines = [f"{key} {metadata[key]}" for key in sorted(metadata)]
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        values = sha256_of_bytes(tensor.reshape(-1).view(torch.uint8).numpy())
        lines.append(f"{name} {tensor.dtype} {list(tensor.shape)} {values}")
    return sha256_of_bytes("\n".join(lines).encode())


def load_checkpoint(path: str | os.PathLike[str]) -> Model:
    """Read a checkpoint written by `save_checkpoint`.

    Raises BadInput, with the cause, for a file that is missing, cut, changed or of another kind.
    """
    form, preset, provenance, parts = read_checkpoint(Path(path))
    if form == AUTOENCODER_FORMAT:
        raise BadInput(
            f"{path} is an autoencoder alone; "
            f"{command('train', '--dataset', preset.name, '--autoencoder', path)} adds a generator"
        )
    return build_model(preset, parts["generator"], parts["autoencoder"], provenance)


def load_autoencoder(path: str | os.PathLike[str]) -> TrainedAutoencoder:
    """Read the autoencoder in a checkpoint, alone or of a whole model. Raises BadInput."""
    _, preset, provenance, parts = read_checkpoint(Path(path))
    return build_autoencoder(preset, parts["autoencoder"], provenance)


def read_checkpoint(path: Path) -> tuple[str, Preset, dict[str, Any], dict[str, Any]]:
    """(format, preset, provenance, tensors of each network) of a file. Raises BadInput."""
    metadata, tensors = read_safetensors(path) if is_safetensors(path) else ({}, {})
    form = metadata.get("format")
    if form not in (FORMAT, AUTOENCODER_FORMAT):
        if "preset" not in metadata:
            check_metadata_kept(tensors, path)
        raise BadInput(
            f"{path} is not an lddgan checkpoint ({FORMAT}); published ones need `lddgan import`"
        )
    expected = metadata.pop("sha256", None)
    if sha256_of_content(metadata, tensors) != expected:
        raise BadInput(f"{path} has changed since it was written (sha256 differs); copy it again")
    try:
        preset = Preset.model_validate_json(metadata["preset"])
        provenance = json.loads(metadata["provenance"])
    except (ValidationError, KeyError, json.JSONDecodeError) as error:
        cause = str(error).partition("\n")[0]
        raise BadInput(f"{path} carries no readable preset: {cause}") from error
    parts: dict[str, dict[str, Tensor]] = {"generator": {}, "autoencoder": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise BadInput(f"{path} has a tensor of neither network: {name}")
        parts[part][rest] = tensor
    return form, preset, provenance, parts


def check_metadata_kept(names: Iterable[object], path: Path) -> None:
    """Raise BadInput if a file without metadata has the tensors of a checkpoint of ours.

    Names that all begin with "generator." may be anybody's: `lddgan import` reads them.
    """
    parts = {str(name).partition(".")[0] for name in names}
    if parts in ({"autoencoder"}, {"generator", "autoencoder"}):
        raise BadInput(
            f"{path} has the tensors of an lddgan checkpoint, but its metadata (preset and sha256) "
            "is missing: whatever saved it again lost it; take the file that lddgan wrote"
        )


def is_ours(path: Path) -> bool:
    """Whether a file begins as a checkpoint of lddgan. Raises BadInput if it cannot be read."""
    return is_safetensors(path) and b'"lddgan-' in read_bytes(path, 64 << 10)  # its metadata


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do. Raises BadInput if it cannot be read."""
    head = read_bytes(path, 9)  # the length of a JSON object, then the object
    if path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80")):
        return True
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 100 << 20


def read_bytes(path: Path, count: int = -1) -> bytes:
    """Read the first `count` bytes of a file, -1 for all. Raises BadInput if it cannot be read."""
    if not path.is_file():
        raise BadInput(f"{path} does not exist or is not a file")
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, tensors) of a safetensors file. Raises BadInput.

    The file is read whole: a mapped one that shrinks would kill the process.
    """
    data = read_bytes(path)
    try:
        tensors = safetensors_load(data)
    except SafetensorError as error:
        size = f"{len(data):,} bytes"
        raise BadInput(f"{path} ({size}) is not a whole safetensors file: {error}") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header.get("__metadata__", {}), tensors


def random_model(preset: Preset) -> Model:
    """A model with variance-preserving random weights, for timing and for tests of exactness.

    Unlike the training initialisation no layer starts near zero, so that a comparison of outputs
    says something about every layer.
    """
    parts = (shapes_of(preset, part).items() for part in ("generator", "autoencoder"))
    weights = [{k: torch.from_numpy(random_tensor(k, tuple(v))) for k, v in part} for part in parts]
    return build_model(preset, weights[0], weights[1], {"random_weights": True})


@lru_cache(32)
def shapes_of(preset: Preset, part: str) -> Mapping[str, torch.Size]:
    """Names and shapes of a network's tensors, in the order of its parameters."""
    with torch.device("meta"):
        return {name: v.shape for name, v in create(part, preset).state_dict().items()}


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Float32 values for one parameter, a function of its name and shape.

    Vectors are 0.1 N(0,1), around one for scales; matrices and kernels N(0,1)/sqrt(fan in); AdaGN
    projections stay small, so that scales stay near one.
    """
    bits = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    draw = bits.standard_normal(shape).astype(np.float32)
    if "embedding.weight" in name:
        return draw
    if name.endswith("style.bias"):
        draw = 0.1 * draw
        draw[: shape[0] // 2] += 1.0
        return draw
    if len(shape) == 1:
        return (1.0 if name.endswith("weight") else 0.0) + 0.1 * draw
    if name.endswith("style.weight"):
        return 0.05 * draw
    fan_in = shape[0] if name.endswith(".W") else int(np.prod(shape[1:]))
    return draw / np.sqrt(np.float32(fan_in))
