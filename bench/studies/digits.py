"""How good generated digits are: python -m bench.studies.digits --count 1000 --seed 0

Of the shipped bundle, of another (--bundle FOLDER --precision int8), or of a CHECKPOINT in PyTorch.

A classifier fitted on real scans says how sure it is of generated ones. Images are averaged down
to 8x8, values 0..16, the form of scikit-learn's scans.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.registry import ENGINES, open_engine
from engine.sampler import Sampler
from export.bundle import DIGITS
from lddgan.errors import BadInput, LddganError
from lddgan.names import PRECISIONS

Images = NDArray[np.uint8]  # [N,32,32,3]

FITTED = 1400  # scans the classifier is fitted on, and a copy is a copy of; the others are held out
SURE = 0.9  # probability from which the classifier counts as sure
COPY_RMS = 0.25  # a sample nearer than this to a training scan is a copy; units of 0..16


class DigitsQuality(NamedTuple):
    """Shares are 0..1."""

    samples: int
    sure: float  # samples that the classifier is sure of
    sure_real: float  # the same for the held-out scans
    digits: tuple[float, ...]  # share of each digit 0..9
    copies: float  # samples within COPY_RMS of a scan
    nearest: float  # median rms distance to the nearest scan


def quality(images: Images) -> DigitsQuality:
    """Measure images uint8 [N,32,32,3]. Needs scikit-learn.

    The classifier is SVC(gamma=0.001, C=10) with probabilities, fitted on the first 1,400 scans
    in the order RandomState(0).permutation. Copies are searched among all 1,797, and among what
    enlarging and averaging makes of them (rms 1 away), which is what a copy would look like.
    """
    from scipy.spatial.distance import cdist
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    from lddgan.data.images import digits

    scans, labels = load_digits(return_X_y=True)  # [1797,64]
    order = np.random.RandomState(0).permutation(len(scans))
    classifier = SVC(gamma=0.001, C=10, probability=True, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*probability.*", FutureWarning)
        classifier.fit(scans[order[:FITTED]], labels[order[:FITTED]])

    samples = to_scans(images)
    of_samples, of_scans = map(classifier.predict_proba, (samples, scans[order[FITTED:]]))  # [N,10]
    enlarged = to_scans(((digits() + 1) * 127.5).permute(0, 2, 3, 1).numpy())
    apart = cdist(samples, np.concatenate([scans, enlarged])).min(axis=1) / scans.shape[1] ** 0.5
    found = np.bincount(of_samples.argmax(axis=1), minlength=10) / len(samples)
    return DigitsQuality(
        samples=len(samples),
        sure=float((of_samples.max(axis=1) >= SURE).mean()),
        sure_real=float((of_scans.max(axis=1) >= SURE).mean()),
        digits=tuple(map(float, found)),
        copies=float((apart < COPY_RMS).mean()),
        nearest=float(np.median(apart)),
    )


def to_scans(images: NDArray[Any]) -> NDArray[np.float64]:
    """Levels 0..255 [N,32,32,3] -> scans [N,64] in 0..16, the means of 4x4 squares."""
    squares = images.astype(np.float64).reshape(-1, 8, 4, 8, 4, 3)
    return squares.mean(axis=(2, 4, 5)).reshape(-1, 64) * (16 / 255)


def opened(asked: argparse.Namespace) -> Sampler:
    """What makes the images. Raises LddganError for what cannot run."""
    if asked.checkpoint is None:
        return open_engine(asked.bundle or DIGITS, asked.engine or "auto", asked.precision)
    if asked.bundle or asked.engine or asked.precision:
        raise BadInput("a checkpoint runs in PyTorch: leave out --bundle, --engine and --precision")
    from engine.registry import open_model
    from lddgan.checkpoint import load_checkpoint

    return open_model(load_checkpoint(asked.checkpoint), device="cpu")


def report(found: DigitsQuality) -> str:
    """The figures as text."""
    digits = "  ".join(f"{digit}: {share:.1%}" for digit, share in enumerate(found.digits))
    return "\n".join(
        (
            f"samples                            {found.samples}",
            f"classifier >= {SURE:.0%} sure of          {found.sure:.1%} of the samples",
            f"                                   {found.sure_real:.1%} of held-out scans",
            f"each digit                         {digits}",
            f"rarest digit                       {min(found.digits):.1%}",
            f"within rms {COPY_RMS} of a scan         {found.copies:.1%} of the samples",
            f"median rms to the nearest scan     {found.nearest:.2f} of 0..16",
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--engine", choices=["auto", *ENGINES])
    parser.add_argument("--precision", choices=PRECISIONS)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        sampler = opened(options)
        print(sampler.description)
        print(report(quality(sampler.sample(options.count, options.seed))))
    except LddganError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
