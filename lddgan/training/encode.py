"""Encoding all images of a data set once, into a folder of latents."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lddgan.checkpoint import TrainedAutoencoder, digest_of
from lddgan.data.images import Images, OnBad, refuse_bad, to_float
from lddgan.errors import BadInput, LddganError
from lddgan.files import atomic_folder, refuse_used, sha256_of_file, sole_writer
from lddgan.memory import memory_named
from lddgan.networks.autoencoder import Autoencoder
from lddgan.progress import Log, Meter
from lddgan.text import printable
from lddgan.torch_settings import exact_fp32
from lddgan.training.latents import FILE, RECORD, Record, Shape, Values
from lddgan.workers import read_ahead

VERIFIED: Final = 64  # images that are encoded twice
TOLERANCE: Final = 1e-4  # between the two, of the largest value
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def encode_images(
    folder: Path,
    trained: TrainedAutoencoder,
    images: Images,
    *,
    flip: bool,
    device: torch.device | str,
    batch: int,
    workers: int,
    on_bad: OnBad,
    log: Log | None = None,
    source: str = "",
) -> int:
    """Encode every image, with `flip` mirrored too, into a folder of latents; returns how many.

    A bad image raises BadInput, or (`on_bad` "skip") is left out and logged.  The folder is there
    whole or not at all.  The autoencoder is moved to `device` and computes in float32.  Raises
    BadInput if the folder holds anything; LddganError if another process is making it, the disk is
    full, a latent is not finite, or latents that are encoded again differ; OutOfMemory.
    """
    preset, digest = trained.preset, digest_of(trained)
    encoder = partial(encode, trained.autoencoder.to(device), device)
    refuse_used(folder)
    alone = sole_writer(folder, beside=True)
    with alone, atomic_folder(folder, replaces=False) as temporary, exact_fp32():
        path = temporary / FILE
        whole = (len(images), 1 + flip, *preset.moments_shape)
        numbers = range(-(-len(images) // batch))
        with (
            path.open("wb") as file,
            Meter("encoding", 0, len(images), log, "images") as meter,
            closing(read_ahead(partial(read_part, images, batch), numbers, workers)) as parts,
        ):
            reserve(file, whole)
            kept = write_all(file, partial(encoder, flip=flip), parts, on_bad, meter)
            file.truncate()
            file.seek(0)
            write_header(file, (len(kept), *whole[1:]))
            file.flush()
            os.fsync(file.fileno())
        error = verify(path, encoder, images, kept, preset.latent_channels, log)
        record = Record(
            schema_version=1,
            sha256=sha256_of_file(path),
            bytes=path.stat().st_size,
            shape=(len(kept), *whole[1:]),
            dtype="float32",
            flip=flip,
            image_size=preset.image_size,
            dataset=preset.name,
            autoencoder=digest,
            source=printable(source),
            count=len(kept),
            left_out=len(images) - len(kept),
            verification_error=error,
        )
        (temporary / RECORD).write_text(record.model_dump_json(indent=1), encoding="utf-8")
    return len(kept)


def encode(
    autoencoder: Autoencoder, device: torch.device | str, images: Tensor, flip: bool = False
) -> Values:
    """Images uint8 or float32 [B,3,H,W] -> moments float32 [B,F,M,h,w], F = 2 with `flip`.

    Raises OutOfMemory.
    """
    told = f"{{}} has too little memory to encode {len(images)} images at once"
    with memory_named(f"{told}; choose a smaller --batch"):
        image = to_float(images.to(device))
        both = [image, image.flip(3)] if flip else [image]
        moments = [autoencoder.moments(each).cpu() for each in both]
        return torch.stack(moments, dim=1).contiguous().numpy()


Part = tuple[list[int], NDArray[Any], list[str]]


def read_part(images: Images, batch: int, number: int) -> Part:
    """Read the images number * batch and following, `batch` of them or as many as there are.

    Returns the indices of the good ones, these as [len(indices),3,H,W], and the errors of the bad.
    """
    first = number * batch
    part = range(first, min(first + batch, len(images)))
    reads = {index: images.read([index], [False]) for index in part}
    good = {index: read.values.numpy() for index, read in reads.items() if not read.bad}
    # After a bad image, `bad` goes on with those that could not replace it.
    bad = [read.bad[0] for read in reads.values() if read.bad]
    return list(good), np.concatenate(list(good.values())) if good else np.empty(0), bad


def write_all(
    file: BinaryIO,
    encoder: Callable[[Tensor], Values],
    parts: Iterator[Part],
    on_bad: OnBad,
    meter: Meter,
) -> list[int]:
    """Write the moments of all good images; returns their indices.

    Raises BadInput for bad images, LddganError for moments that are not finite.
    """
    kept: list[int] = []
    for good, images, bad in parts:
        refuse_bad(bad, on_bad)
        for what in bad:
            meter.log(f"left out: {what}")
        if good:
            values = encoder(torch.from_numpy(images))
            finite = np.isfinite(values).all(axis=(1, 2, 3, 4))
            if not finite.all():
                which = f"the latent of image {good[int(finite.argmin())]}"
                raise LddganError(f"{which} is not finite: train the autoencoder again")
            file.write(values.data)
            kept += good
        meter.advance(len(good) + len(bad))
    if not kept:
        raise BadInput(f"all {meter.total:,} images are bad; there is nothing to encode")
    return kept


def reserve(file: BinaryIO, shape: Shape) -> None:
    """Begin a .npy file for float32 of `shape` and reserve its disk space. Raises LddganError."""
    write_header(file, shape)
    size = file.tell() + np.dtype(np.float32).itemsize * prod(shape)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:  # where the file system cannot reserve, writing will tell
        if error.errno in NO_ROOM:
            told = f"the latents take {size / 1e9:.3g} GB, for which the disk has no room"
            raise LddganError(f"{told}: {error.strerror}") from error


def write_header(file: BinaryIO, shape: Shape) -> None:
    """Write the header of a .npy file of float32: as long for any number of rows."""
    fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)


def verify(
    path: Path,
    encoder: Callable[[Tensor], Values],
    images: Images,
    kept: Sequence[int],
    channels: int,
    log: Log | None,
) -> float:
    """Encode VERIFIED of the images `kept` again, one by one, the mirrored ones read as such.

    Returns the largest difference from the file, relative to the largest value, of means and of
    log-variances.  Raises LddganError if it is above TOLERANCE.
    """
    stored = np.load(path, mmap_mode="r")
    rows = np.linspace(0, len(kept) - 1, min(VERIFIED, len(kept))).round().astype(int).tolist()
    sides = [False, True][: stored.shape[1]]
    again = []
    with Meter("verifying", 0, len(rows), log, "images") as meter:
        for row in rows:
            reads = [images.read([kept[row]], [mirrored]) for mirrored in sides]
            again.append([encoder(read.values)[0, 0] for read in reads])
            meter.advance(1)
    error = difference(np.array(again), stored[rows], channels)
    if not error <= TOLERANCE:
        raise LddganError(
            f"latents that were encoded twice differ by {error:.1e} of the largest, more than "
            f"{TOLERANCE:.0e}: the images change, or the device is unreliable; try another --device"
        )
    return error


def difference(found: Values, expected: Values, channels: int) -> float:
    """Largest difference of moments [R,F,M,h,w] relative to the largest value expected.

    Means and log-variances, `channels` each, are compared apart; returns the larger one.
    """
    parts, tiny = expected.shape[2] // channels, np.finfo(np.float32).tiny
    pairs = zip(np.split(found, parts, 2), np.split(expected, parts, 2), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), tiny)) for a, b in pairs)
