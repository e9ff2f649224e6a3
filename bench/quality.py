"""How good generated photographs are: python -m bench.quality CHECKPOINT --held-out FOLDER

Precision, recall and Frechet distance against held-out images, on PIXEL FEATURES: the image
averaged down, values 0..1.  No network judges, so the figures compare with each other only, never
with a published FID.  They see colours and coarse shapes, nothing finer than a square of the
average: a photograph and its slightly blurred copy are the same to them.

Precision and recall (Kynkaanniemi et al., arXiv 1904.06991, k = 3) are on averages of 8x8, 192
values.  The Frechet distance is on averages of 4x4, 48 values: of 192 the covariance would be
singular for the 104 held-out crops of bench/studies/photos.py.  Against those, 2,000 images get

                                           precision  recall  Frechet
    training crops (--train)                    0.82    0.62    0.048
    training crops of one photograph            0.83    0.27    1.5
    mean colours of training crops              0.99    0.03    0.29
    noise                                       0.24    0.00    5.2

Precision alone says little.  Recall falls as the images become more, also for real ones, and
differences below 0.1 are within its error (0.05).  Compare rows of one --count and one --held-out.

The last two figures are of the checkpoint's autoencoder, on the held-out images: mean absolute
error in grey levels, and PSNR over all pixels of all images in dB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from engine.sampler import Sampler, check_request
from export.compare import Images, mean_levels, psnr  # Images: uint8 [N,H,W,3]
from lddgan.data.decode import BadImage
from lddgan.data.open_source import open_source
from lddgan.errors import BadInput, LddganError
from lddgan.extras import require
from lddgan.frozen import Frozen

if TYPE_CHECKING:
    from lddgan.checkpoint import Model

Features = NDArray[np.float64]  # [N,D]

FINE, COARSE = 8, 4  # side of the averages: of precision and recall, of the Frechet distance
K: Final = 3  # neighbours
AT_ONCE = 512  # rows of a matrix of distances


class PhotoQuality(Frozen):
    """One row."""

    model_config = ConfigDict(ser_json_inf_nan="strings")  # the PSNR of equal images is infinite

    name: str  # a checkpoint, or the folder of training images
    images: int
    held_out: int  # images that they are compared with
    precision: float  # share of the images that are like a held-out one
    recall: float  # share of the held-out images that are like one of the images
    frechet: float
    mean_error: float | None = None  # of the autoencoder, 0..255
    psnr: float | None = None  # the same, dB


def quality(name: str, images: Images, held_out: Images) -> PhotoQuality:
    """Images uint8 [N,S,S,3] against held-out ones [M,S,S,3].

    Raises BadInput for sizes that differ or do not divide by 8, and for fewer than 4 images.
    """
    if images.shape[1:] != held_out.shape[1:]:
        sizes = " and ".join(f"{i.shape[2]}x{i.shape[1]}" for i in (images, held_out))
        raise BadInput(f"{name} and the held-out images differ in size: {sizes}")
    precision, recall = precision_recall(averaged(held_out, FINE), averaged(images, FINE), K)
    return PhotoQuality(
        name=name,
        images=len(images),
        held_out=len(held_out),
        precision=precision,
        recall=recall,
        frechet=frechet_distance(averaged(images, COARSE), averaged(held_out, COARSE)),
    )


def averaged(images: Images, side: int) -> Features:
    """Images uint8 [N,H,W,3] -> their averages of side x side, [N,side*side*3] in 0..1.

    Raises BadInput if the sides of the images do not divide by `side`.
    """
    count, height, width, _ = images.shape
    if height % side or width % side:
        raise BadInput(f"images of {width}x{height} cannot be averaged to {side}x{side}")
    squares = images.reshape(count, side, height // side, side, width // side, 3)
    return squares.mean(axis=(2, 4), dtype=np.float64).reshape(count, -1) / 255


def frechet_distance(a: Features, b: Features) -> float:
    """Squared Frechet distance of the Gaussians fitted to a [N,D] and b [M,D].

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2), where A and B are the covariances with divisor
    N-1.  The trace of the root is the sum of the roots of the eigenvalues of A^1/2 B A^1/2, which
    is symmetric.  Source: Dowson and Landau 1982.  Raises BadInput for fewer than 2 rows.
    """
    check_features(a, b, least=2)
    gap = a.mean(axis=0) - b.mean(axis=0)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov_b @ root).clip(0)
    spread = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(product).sum()
    return float(gap @ gap + max(spread, 0.0))


def precision_recall(real: Features, fake: Features, k: int) -> tuple[float, float]:
    """(precision, recall) of fake [N,D] against real [M,D]: Kynkaanniemi et al., equations 1-2.

    A ball around each row of a set reaches to its k-th nearest other row.  Precision is the share
    of fake rows in a ball of real ones, recall the share of real rows in a ball of fake ones.
    Raises BadInput for fewer than k+1 rows.
    """
    check_features(real, fake, least=k + 1)
    return covered(fake, real, k), covered(real, fake, k)


def covered(points: Features, by: Features, k: int) -> float:
    """Share of points [N,D] within the distance of a row of `by` [M,D] to its k-th neighbour."""
    radii = np.concatenate(
        [np.partition(squared(part, by), k, axis=1)[:, k] for part in in_parts(by)]
    )  # [M]; the 0-th neighbour is the row itself
    inside = [(squared(part, by) <= radii).any(axis=1) for part in in_parts(points)]
    return float(np.concatenate(inside).mean())


def squared(a: Features, b: Features) -> NDArray[np.float64]:
    """Squared distances of rows, [N,D] and [M,D] -> [N,M]; exactly 0 for equal rows."""
    from scipy.spatial.distance import cdist

    return cdist(a, b, "sqeuclidean")


def in_parts(rows: Features) -> list[Features]:
    return [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]


def check_features(a: Features, b: Features, least: int) -> None:
    """Raise BadInput unless both are finite and [>= least, D] with one D."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise BadInput(f"features are {list(a.shape)} and {list(b.shape)}, not [N,D] and [M,D]")
    if min(len(a), len(b)) < least:
        raise BadInput(f"{min(len(a), len(b))} images are too few: at least {least} are needed")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise BadInput("features hold NaN or Inf")


def read_images(path: Path, count: int | None = None, seed: int = 0) -> Images:
    """The images at a path, or `count` of them drawn by `seed`: uint8 [N,H,W,3].

    Raises BadInput for none, a bad one, or sizes that differ.
    """
    source = open_source(path)
    index = np.random.default_rng(seed).permutation(len(source))[:count]
    images = []
    for number in sorted(index.tolist()):
        try:
            images.append(source.read(number))
        except BadImage as error:
            raise BadInput(f"{source.name(number)} {error}") from error
        if images[-1].shape != images[0].shape:
            height, width, _ = images[-1].shape
            raise BadInput(f"{source.name(number)} is {width}x{height}, unlike the others")
    return np.stack(images)


def checkpoint_quality(path: Path, held_out: Images, count: int, seed: int) -> PhotoQuality:
    """The row of a checkpoint: `count` images of a seed, in PyTorch on the CPU."""
    from engine.registry import open_model
    from lddgan.checkpoint import load_checkpoint

    model = load_checkpoint(path)
    sampler = open_model(model, device="cpu")
    row = quality(str(path), sampler.sample(count, seed), held_out)
    decoded = reconstructed(model, sampler, held_out)
    errors = {"mean_error": mean_levels(decoded, held_out), "psnr": psnr(decoded, held_out)}
    return row.model_copy(update=errors)


def reconstructed(model: Model, sampler: Sampler, images: Images) -> Images:
    """Images uint8 [N,S,S,3], encoded and decoded."""
    import torch

    from lddgan.data.images import to_float

    parts = []
    for start in range(0, len(images), sampler.chunk):
        part = torch.from_numpy(images[start : start + sampler.chunk])
        x_0 = model.encode(to_float(part.permute(0, 3, 1, 2)))
        parts.append(sampler.backend.download(sampler.decode(x_0)))
    return np.concatenate(parts)


def rows(options: argparse.Namespace) -> list[PhotoQuality]:
    """The reference, if asked for, then the checkpoints. Raises LddganError."""
    require("torch", "sklearn")  # scipy comes with scikit-learn
    check_request(options.count, options.seed, first=0, batch=None)
    held_out = read_images(options.held_out)
    found = []
    if options.train is not None:
        real = read_images(options.train, options.count, options.seed)
        found.append(quality(str(options.train), real, held_out))
    for path in options.checkpoints:
        found.append(checkpoint_quality(path, held_out, options.count, options.seed))
    return found


def table(found: Sequence[PhotoQuality]) -> str:
    """The rows as text."""
    wide = max(len(row.name) for row in found)
    lines = [f"{'':{wide}}  images  precision  recall  Frechet  mean error     PSNR"]
    for row in found:
        line = f"{row.name:{wide}}  {row.images:6}  {row.precision:9.3f}  {row.recall:6.3f}"
        line += f"  {row.frechet:7.4f}"
        if row.mean_error is not None:
            line += f"  {row.mean_error:6.2f}/255  {row.psnr:4.1f} dB"
        lines.append(line)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--train", type=Path, help="training images: the row of real ones")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line of JSON for each row")
    options = parser.parse_args(arguments)
    if not options.checkpoints and options.train is None:
        parser.error("name a checkpoint, or --train FOLDER")
    try:
        found = rows(options)
    except LddganError as error:
        sys.exit(f"error: {error}")
    print("\n".join(row.model_dump_json() for row in found) if options.json else table(found))


if __name__ == "__main__":
    main()
