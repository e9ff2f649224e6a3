"""Images by address: the same bits as `Sampler.stream` gives, whatever else is in the batch."""

from __future__ import annotations

import random

import numpy as np
import pytest

import lddgan
from engine.sampler import Sampler
from engine.slots import Address, batches, check_slots, noise_of, sample_at, slerp
from export.bundle import DIGITS
from lddgan.errors import BadInput
from lddgan.noise import draw, draw_at
from lddgan.presets import get_preset

pytest.importorskip("onnxruntime")
PRESET = get_preset("digits")
FAR = 2**63 - 1


@pytest.fixture(scope="module")
def sampler():  # type: ignore[no-untyped-def]
    with lddgan.open_engine(DIGITS, "ort", batch=4) as opened:
        yield opened


def test_scattered_noise_is_that_of_each_image_alone() -> None:
    seeds, indices = [0, 7, FAR, 2**40, 7], [5, 5, FAR, 2**33 + 1, 0]
    drawn = draw_at(PRESET, seeds, indices)
    for row, (seed, index) in enumerate(zip(seeds, indices, strict=True)):
        alone = draw(PRESET, index, 1, seed)
        assert drawn.x_T[row].tobytes() == alone.x_T.tobytes()
        assert drawn.z[:, row].tobytes() == alone.z.tobytes()
        assert drawn.noise[:, row].tobytes() == alone.noise.tobytes()


@pytest.mark.parametrize("bad", [([-1], [0]), ([0], [2**63]), ([], [])])
def test_noise_of_no_image_is_refused(bad) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must be an integer"):
        draw_at(PRESET, *bad)


def test_batches_keep_slots_and_are_as_few_as_can_be() -> None:
    addresses = [Address(0, index) for index in (0, 4, 8, 1, 3, 7)]
    made = batches(addresses, 4)
    assert len(made) == 3  # three images share slot 0
    for positions in made:
        assert len(positions) == 4
    at = {(p, slot) for positions in made for slot, p in enumerate(positions)}
    assert {(p, one.index % 4) for p, one in enumerate(addresses)} <= at


def test_images_in_any_company_are_the_bytes_of_a_stream(sampler: Sampler) -> None:
    true = {
        (seed, index): image
        for seed in (3, 4)
        for index, image in enumerate(sampler.sample(20, seed, batch=4))
    }
    for turn in range(3):
        order = list(true)
        random.Random(turn).shuffle(order)
        images = sample_at(sampler, [Address(*one) for one in order[:13]], 4)
        for one, image in zip(order, images, strict=False):
            assert np.array_equal(image, true[one])


def test_a_walk_ends_at_the_two_images(sampler: Sampler) -> None:
    steps = [Address(3, 5, 4, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    images = sample_at(sampler, steps, 4)
    ends = sample_at(sampler, [Address(3, 5), Address(4, 5)], 4)
    assert np.array_equal(images[0], ends[0])
    assert np.array_equal(images[-1], ends[1])
    assert len({image.tobytes() for image in images}) == 5


def test_slerp_keeps_length_and_divides_the_angle() -> None:
    a, b = np.array([1, 0, 0], np.float32), np.array([0, 1, 0], np.float32)
    third = slerp(a, b, 1 / 3)
    assert np.allclose(third, [np.cos(np.pi / 6), np.sin(np.pi / 6), 0], atol=1e-7)
    long = np.random.default_rng(0).standard_normal((2, 4096)).astype(np.float32)
    assert np.linalg.norm(slerp(*long, 0.5)) == pytest.approx(64, rel=0.03)
    assert slerp(a, a, 0.3).tobytes() == a.tobytes()


def test_walk_noise_leaves_the_other_images_alone() -> None:
    noise = noise_of(PRESET, [Address(1, 2), Address(1, 3, 9, 0.5)])
    assert noise.x_T[0].tobytes() == draw(PRESET, 2, 1, 1).x_T.tobytes()
    ends = [draw(PRESET, 3, 1, seed).z[0, 0] for seed in (1, 9)]
    assert np.allclose(noise.z[0, 1], slerp(*ends, 0.5))


def test_a_batch_beyond_the_chunk_is_refused(sampler: Sampler) -> None:
    with pytest.raises(BadInput, match="images at once"):
        sample_at(sampler, [Address(0, 0)], sampler.chunk + 1)


def test_check_finds_an_engine_whose_images_depend_on_their_neighbours(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_slots(sampler, 4, 20).changed == 0
    run = sampler.run

    def leaking(x_T, z, noise):  # type: ignore[no-untyped-def]
        images = run(x_T, z, noise)
        return images + np.uint8(x_T[:, 0, 0, 0].sum() > 0)  # a bit of all of the batch

    monkeypatch.setattr(sampler, "run", leaking)
    found = check_slots(sampler, 4, 40)
    assert 0 < found.changed < found.compared
