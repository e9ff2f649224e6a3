"""The loop over the T generator calls, written once for arrays and tensors of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

X = TypeVar("X")  # numpy, torch, or an array where an engine computes


def chain(
    step: Callable[[X, int, X, X], X], x_T: X, z: Sequence[X], noise: Sequence[X]
) -> Iterator[X]:
    """Yield x after each of the T calls of `step(x, t, z, noise)`, t = T-1..0; the last is x_0.

    x_T [B,C,h,w]; call k is given z[k] [B,nz] and noise[k] [B,C,h,w], and has t = T-1-k.
    """
    x = x_T
    for t, z_k, noise_k in zip(reversed(range(len(z))), z, noise, strict=True):
        x = step(x, t, z_k, noise_k)
        yield x
