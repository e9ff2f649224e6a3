"""How good generated photographs are: python -m bench.quality CHECKPOINT --held-out FOLDER

Precision, recall and Frechet distance against held-out images, on PIXEL FEATURES: the image
averaged down, values 0..1. No network judges, so the figures compare with each other only, never
with a published FID. They see colours and coarse shapes, nothing finer than a square of the
average: a photograph and its slightly blurred copy are the same to them.

Precision and recall (Kynkaanniemi et al., arXiv 1904.06991, k = 3) are on averages of 8x8, 192
values, or of another --side. The Frechet distance is on averages of 4x4, 48 values: of 192 the
covariance would be singular for 104 held-out crops. docs/photos.md has the figures of images that
are known.

Copies, with --train, are the images that are nearer to a training image, or to its mirror image,
than 99 % of the training images are to their nearest other one.

The last two figures are of the checkpoint's autoencoder, on the held-out images: mean absolute
error in grey levels, and PSNR over all pixels of all images in dB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.row import new_row, now
from bench.tables import show
from engine.sampler import check_request
from export.agreement import Images, mean_levels, psnr
from lddgan.data.decode import BadImage
from lddgan.data.open_source import open_source
from lddgan.errors import BadInput, LddganError
from lddgan.extras import require
from lddgan.progress import to_stderr

Features = NDArray[np.float64]  # [N,D]

FINE, COARSE = 8, 4  # side of the averages: of precision and recall, of the Frechet distance
K: Final = 3  # neighbours
ALIKE: Final = 0.01  # share of the training images that are the most alike


def quality(name: str, images: Images, held_out: Images, side: int = FINE) -> dict[str, Any]:
    """Facts of images uint8 [N,S,S,3] against held-out ones [M,S,S,3].

    `side` is that of the averages for precision and recall.  Raises BadInput for sizes that differ
    or do not divide, and for fewer than 4 images.
    """
    if images.shape[1:] != held_out.shape[1:]:
        sizes = " and ".join(f"{i.shape[2]}x{i.shape[1]}" for i in (images, held_out))
        raise BadInput(f"{name} and the held-out images differ in size: {sizes}")
    precision, recall = precision_recall(averaged(held_out, side), averaged(images, side), K)
    return {
        "name": name,  # a checkpoint, or the folder of training images
        "images": len(images),
        "held_out": len(held_out),  # images that they are compared with
        "precision": precision,  # share of the images that are like a held-out one
        "recall": recall,  # share of the held-out images that are like one of the images
        "frechet": frechet_distance(averaged(images, COARSE), averaged(held_out, COARSE)),
    }


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
    N-1. The trace of the root is the sum of the roots of the eigenvalues of A^1/2 B A^1/2, which
    is symmetric. Source: Dowson and Landau 1982. Needs 2 rows of each.
    """
    gap = a.mean(axis=0) - b.mean(axis=0)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov_b @ root).clip(0)
    spread = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(product).sum()
    return float(gap @ gap + max(spread, 0.0))


def precision_recall(real: Features, fake: Features, k: int) -> tuple[float, float]:
    """(precision, recall) of fake [N,D] against real [M,D]: Kynkaanniemi et al., equations 1-2.

    A ball around each row of a set reaches to its k-th nearest other row. Precision is the share
    of fake rows in a ball of real ones, recall the share of real rows in a ball of fake ones.
    Raises BadInput for fewer than k+1 rows.
    """
    fewest = min(len(real), len(fake))
    if fewest <= k:
        raise BadInput(f"{fewest} images are too few: at least {k + 1} are needed")
    return covered(fake, real, k), covered(real, fake, k)


def copies(images: Images, train: Images, side: int = FINE) -> float:
    """Share of images [N,S,S,3] nearer to one of `train` [M,S,S,3] than those are to each other.

    Nearer, in averages of `side`, to it or to its mirror image than ALIKE of all training images
    are to their nearest other one.
    """
    from sklearn.neighbors import NearestNeighbors

    real = averaged(train, side)
    between, _ = NearestNeighbors(n_neighbors=1).fit(real).kneighbors()  # itself is left out
    seen = np.concatenate([real, averaged(train[:, :, ::-1], side)])
    apart, _ = NearestNeighbors(n_neighbors=1).fit(seen).kneighbors(averaged(images, side))
    return float((apart < np.quantile(between, ALIKE)).mean())


def covered(points: Features, by: Features, k: int) -> float:
    """Share of points [N,D] within the distance of a row of `by` [M,D] to its k-th neighbour."""
    from sklearn.metrics import pairwise_distances_chunked

    # Squared, and 0 for equal rows.
    distances = partial(pairwise_distances_chunked, Y=by, metric="sqeuclidean")
    # [M]; the 0-th neighbour is the row itself
    radii = np.concatenate([np.partition(part, k, axis=1)[:, k] for part in distances(by)])
    inside = [(part <= radii).any(axis=1) for part in distances(points)]
    return float(np.concatenate(inside).mean())


def read_images(path: Path) -> Images:
    """The images at a path: uint8 [N,H,W,3].

    Raises BadInput for none, a bad one, or sizes that differ.
    """
    source = open_source(path)
    for line in source.told():
        to_stderr(line)
    images = []
    for number in range(len(source)):
        try:
            images.append(source.read(number))
        except BadImage as error:
            raise BadInput(f"{source.name(number)} {error}") from error
        if images[-1].shape != images[0].shape:
            height, width, _ = images[-1].shape
            raise BadInput(f"{source.name(number)} is {width}x{height}, unlike the others")
    return np.stack(images)


def checkpoint_quality(
    path: Path,
    held_out: Images,
    count: int,
    seed: int,
    *,
    side: int = FINE,
    train: Images | None = None,
) -> dict[str, Any]:
    """Facts of a checkpoint: `count` images of a seed, in PyTorch on the CPU; its autoencoder."""
    import torch

    from engine.registry import open_model
    from lddgan.data.images import to_float
    from lddgan.training.run_folder import load_model

    model = load_model(path)
    sampler = open_model(model, device="cpu")

    def reconstruct(start: int, size: int) -> Images:
        part = torch.from_numpy(held_out[start : start + size])
        x_0 = model.encode(to_float(part.permute(0, 3, 1, 2)))
        return sampler.backend.download(sampler.decode(x_0))

    decoded = np.concatenate(list(sampler.in_parts(len(held_out), reconstruct)))
    images = sampler.sample(count, seed)
    copied = {} if train is None else {"copies": copies(images, train, side)}
    return (
        quality(str(path), images, held_out, side)
        | copied
        | {
            "mean_error": mean_levels(decoded, held_out),  # of 0..255
            "psnr": psnr(decoded, held_out),  # dB
        }
    )


def print_table(found: Sequence[dict[str, Any]]) -> None:
    """Write the facts as a table."""
    columns = ("", "images", "precision", "recall", "Frechet", "copies", "mean error", "PSNR")
    lines = []
    for one in found:
        shares = (f"{one[name]:.3f}" for name in ("precision", "recall"))
        of_model = ("", "", "")
        if "psnr" in one:
            copied = f"{one['copies']:.1%}" if "copies" in one else ""
            of_model = (copied, f"{one['mean_error']:.2f}/255", f"{one['psnr']:.1f} dB")
        lines.append((one["name"], str(one["images"]), *shares, f"{one['frechet']:.4f}", *of_model))
    show("", columns, lines, ())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--train", type=Path, help="training images: the row of real ones; copies")
    parser.add_argument("--side", type=int, default=FINE, help="of the averages; default 8")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line of JSON for each row")
    options = parser.parse_args(arguments)
    if not options.checkpoints and options.train is None:
        parser.error("name a checkpoint, or --train FOLDER")
    found = []
    try:
        require("torch", "sklearn")
        check_request(options.count, options.seed, first=0, batch=None)
        held_out, train, side = read_images(options.held_out), None, options.side
        if options.train is not None:
            train = read_images(options.train)
            chosen = np.random.default_rng(options.seed).permutation(len(train))[: options.count]
            found.append(quality(str(options.train), train[np.sort(chosen)], held_out, side))
        for path in options.checkpoints:
            asked = (path, held_out, options.count, options.seed)
            found.append(checkpoint_quality(*asked, side=side, train=train))
    except LddganError as error:
        sys.exit(f"error: {error}")
    if not options.json:
        print_table(found)
        return
    session = now()
    for facts in found:
        print(new_row("photos", session, facts=facts).line())


if __name__ == "__main__":
    main()
