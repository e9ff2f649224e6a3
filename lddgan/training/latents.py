"""Latents to train on: images are encoded as they are read, or once and stored.

A folder of latents (`lddgan.training.encode` writes it) holds latents.npy, float32 [N,F,M,h,w],
and latents.json, which describes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from lddgan.checkpoint import TrainedAutoencoder, digest_of
from lddgan.data.images import Read
from lddgan.errors import BadInput, why_invalid
from lddgan.files import sha256_of_file
from lddgan.frozen import Frozen
from lddgan.networks.autoencoder import Autoencoder

FILE: Final = "latents.npy"
RECORD: Final = "latents.json"
ENCODE_BATCH: Final = 256  # images in memory that are encoded at once
AGAIN: Final = "encode the images again with `lddgan dataset encode`"

Values = NDArray[np.float32]
Shape = tuple[int, int, int, int, int]


class StoredLatents:
    """Moments that are read by index, as images are; if F = 2, those of mirrored images too.

    `values` are float32 [N,F,M,h,w], or a file of such that each process maps.
    """

    def __init__(self, values: Values | Path) -> None:
        self.given = values
        if isinstance(values, Path):
            values = np.asarray(np.load(values, mmap_mode="r"))
        self.values: Values = values

    def __reduce__(self) -> tuple[type[StoredLatents], tuple[Values | Path]]:
        return StoredLatents, (self.given,)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def has_mirrored(self) -> bool:
        return self.values.shape[1] > 1

    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> Read:
        """A copy of the moments by index, float32 [B,M,h,w]."""
        at = np.asarray(index, np.intp), np.asarray(mirrored, np.intp)
        return Read(torch.from_numpy(self.values[at]), [])


def latents_of(autoencoder: Autoencoder, images: Tensor) -> StoredLatents:
    """Encode images float32 [N,3,H,W] in [-1,1] in memory, on the CPU, none of them mirrored."""
    moments = [autoencoder.moments(part) for part in torch.split(images, ENCODE_BATCH)]
    return StoredLatents(torch.cat(moments)[:, None].numpy())


class Record(Frozen):
    """latents.json: what the file beside it holds."""

    schema_version: Literal[1]
    sha256: str
    bytes: int
    shape: Shape  # [N,F,M,h,w]; F = 2 if mirrored images were encoded too
    dtype: Literal["float32"]
    flip: bool
    image_size: int
    dataset: str  # name of the preset
    autoencoder: str  # digest of its tensors
    source: str  # where the images were
    count: int  # N
    left_out: int  # images that were bad
    verification_error: float  # of some that were encoded again, relative to the largest value


def open_latents(folder: Path, trained: TrainedAutoencoder) -> StoredLatents:
    """Open the latents in a folder; all are read once to check their sha256.

    Raises BadInput if there are none, or they are damaged or of another autoencoder.
    """
    path, moments = folder / RECORD, trained.preset.moments_shape
    if not path.is_file():
        raise BadInput(f"there are no latents at {folder}; `lddgan dataset encode` makes them")
    try:
        record = Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        cause = why_invalid(error, "the file")
        raise BadInput(f"{path} is not of schema 1: {cause}; {AGAIN}") from error
    if record.autoencoder != digest_of(trained):
        raise BadInput(f"{folder} holds the latents of another autoencoder; {AGAIN}")
    if record.shape != (record.count, 1 + record.flip, *moments):
        raise BadInput(
            f"{folder} holds {list(record.shape[2:])} per image, where the autoencoder of kind "
            f"'{trained.preset.autoencoder.kind}' gives {list(moments)}; {AGAIN}"
        )
    path = folder / FILE
    if not path.is_file() or sha256_of_file(path) != record.sha256:
        raise BadInput(f"{path} is not what was written (sha256 differs); {AGAIN}")
    return StoredLatents(path)
