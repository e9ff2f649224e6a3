"""Images by address: any images of any seeds in one batch, each the same to the bit in any company.

What a pixel is depends on the engine, on the batch's shape and on the image's slot in the batch,
not on its neighbours.  So batches have one shape, B images, and image i is computed in slot
i mod B, where `lddgan sample --batch B` computes it too; a slot without an image repeats another
one.  No library promises it: `check_slots` looks whether an engine does so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.backend import Float32, Images
from engine.sampler import Sampler, equal_parts
from lddgan.noise import Noise, draw_at
from lddgan.preset import Preset

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Address:
    """An image: `index` of a seed; or, with `to`, of the walk from the seed to the seed `to`."""

    seed: int
    index: int
    to: int | None = None
    share: float = 0.0  # of the way, in 0..1


class Slots(NamedTuple):
    """How often an image differed in another company, of so many comparisons."""

    batch: int
    compared: int
    changed: int


def noise_of(preset: Preset, addresses: Sequence[Address]) -> Noise:
    """The noise of a batch. Raises ValueError for a seed or index outside 0..2^63-1."""
    noise = draw_at(preset, [one.seed for one in addresses], [one.index for one in addresses])
    walks = [(row, one.index, one.to) for row, one in enumerate(addresses) if one.to is not None]
    if walks:
        rows, indices, seeds = zip(*walks, strict=True)
        ends = draw_at(preset, seeds, indices)
        for end, row in enumerate(rows):
            share = addresses[row].share
            noise.x_T[row] = slerp(noise.x_T[row], ends.x_T[end], share)
            for k in range(preset.steps):
                noise.z[k, row] = slerp(noise.z[k, row], ends.z[k, end], share)
                noise.noise[k, row] = slerp(noise.noise[k, row], ends.noise[k, end], share)
    return noise


def slerp(a: Float32, b: Float32, share: float) -> Float32:
    """Spherical interpolation from a to b, which keeps noise as long as noise is.

    Shoemake 1985, "Animating rotation with quaternion curves", of arrays as one vector each.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    cosine = (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    if angle < 1e-9:  # the same noise
        return a
    mixed: NDArray[np.float64] = np.sin((1 - share) * angle) * x + np.sin(share * angle) * y
    return (mixed / np.sin(angle)).astype(np.float32)


def batches(addresses: Sequence[Address], batch: int) -> list[list[int]]:
    """Positions of the addresses in the fewest batches that give each its slot, index mod batch.

    A slot without an image holds the position of another one of its batch.
    """
    waiting: list[list[int]] = [[] for _ in range(batch)]
    for position, one in enumerate(addresses):
        waiting[one.index % batch].append(position)
    made = []
    for turn in range(max(map(len, waiting), default=0)):
        made.append(filled([slot[turn] if turn < len(slot) else None for slot in waiting]))
    return made


def filled(slots: Sequence[T | None]) -> list[T]:
    """The slots, those without an image with the first one that there is."""
    present = next(one for one in slots if one is not None)
    return [present if one is None else one for one in slots]


def images_of(sampler: Sampler, addresses: Sequence[Address]) -> Images:
    """The images of addresses in their order, as one batch."""
    if is_drawn_on_host(sampler, addresses):
        return sampler.run(*noise_of(sampler.preset, addresses))
    return sampler.run_at([one.seed for one in addresses], [one.index for one in addresses])


def is_drawn_on_host(sampler: Sampler, addresses: Sequence[Address]) -> bool:
    """Whether the noise of a batch is made here: of walks, and where an engine draws none."""
    return sampler.backend.draws_on_host or any(one.to is not None for one in addresses)


def sample_at(sampler: Sampler, addresses: Sequence[Address], batch: int) -> Images:
    """The images of addresses, uint8 [N,H,W,3], each in its slot of a batch of `batch`.

    Raises BadInput for a batch that the engine does not compute at once.
    """
    sampler.check_fits(batch)
    _, height, width = sampler.preset.image_shape
    images = np.empty((len(addresses), height, width, 3), np.uint8)
    for positions in batches(addresses, batch):
        made = images_of(sampler, [addresses[position] for position in positions])
        for slot, image in enumerate(made):
            if addresses[positions[slot]].index % batch == slot:
                images[positions[slot]] = image
    return images


def whole_batch(sampler: Sampler, batch: int) -> int:
    """What an engine computes at once of batches of `batch`."""
    return equal_parts(batch, sampler.chunk)[0]


def check_slots(sampler: Sampler, batch: int, num: int = 1, seed: int = 0) -> Slots:
    """Compute 2B images in their batches, then at least `num` in other company, and compare.

    A round swaps images of the two batches slot by slot, puts walks beside some, and computes one
    alone.
    """
    random = np.random.default_rng(seed)
    true = sample_at(sampler, [Address(seed, index) for index in range(2 * batch)], batch)
    compared = changed = turn = 0
    while compared < num:
        turn += 1
        half = random.integers(0, 2, batch)
        one, other = (
            [Address(seed, int(part) * batch + slot) for slot, part in enumerate(parts)]
            for parts in (half, 1 - half)
        )
        beside_walks = [
            address if random.integers(0, 2) else Address(seed + turn, address.index, seed, 0.5)
            for address in one
        ]
        for company in (one, other, beside_walks, one[turn % batch :][:1]):
            images = sample_at(sampler, company, batch)
            for address, image in zip(company, images, strict=True):
                if address.to is None:
                    compared += 1
                    changed += not np.array_equal(image, true[address.index])
    return Slots(batch, compared, changed)
