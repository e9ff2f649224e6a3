"""Training images and the order in which they are seen."""

import sys

import numpy as np
import pytest
import torch

from lddgan.data.feed import Order, epoch_flips, epoch_order
from lddgan.data.images import digits, enlarge
from lddgan.errors import BadInput, LddganError


def test_digits_are_the_scans_enlarged():
    from sklearn.datasets import load_digits

    images = digits()
    assert images.shape == (1797, 3, 32, 32) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    averaged = images[:, 0].reshape(-1, 8, 4, 8, 4).mean(dim=(2, 4)).flatten(1)
    scans = torch.from_numpy(load_digits().data).float() / 8 - 1
    correlation = np.corrcoef(averaged.flatten(), scans.flatten())[0, 1]
    assert correlation > 0.98


def test_enlarging_follows_the_bicubic_formula():
    # Cubic convolution with a = -3/4; pixel X of 32 lies at (X + 1/2)/4 - 1/2 of 8. One bright
    # column on middle grey shows the kernel itself.
    a = -0.75
    scan = torch.full((1, 8, 8), 8.0)
    scan[:, :, 3] = 16.0
    d = ((torch.arange(32) + 0.5) / 4 - 0.5 - 3).abs()
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    kernel = torch.where(d < 1, near, torch.where(d < 2, far, torch.zeros(32)))
    torch.testing.assert_close(enlarge(scan)[0, 2], kernel.expand(32, 32), rtol=0, atol=1e-6)


def test_missing_scikit_learn_names_the_line_to_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(LddganError, match="sklearn is not installed; pip install"):
        digits()


def test_an_epoch_is_a_permutation_that_seed_and_epoch_determine():
    order = epoch_order(100, seed=3, epoch=2)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, epoch_order(100, seed=3, epoch=2))
    assert not torch.equal(order, epoch_order(100, seed=3, epoch=1))
    assert not torch.equal(order, epoch_order(100, seed=2, epoch=2))


def test_half_of_the_images_are_mirrored_as_seed_and_epoch_say():
    flips = epoch_flips(10_000, seed=3, epoch=2)
    assert 4700 < flips.sum() < 5300
    assert torch.equal(flips, epoch_flips(10_000, seed=3, epoch=2))
    assert not torch.equal(flips, epoch_flips(10_000, seed=3, epoch=1))
    assert not torch.equal(flips, epoch_flips(10_000, seed=2, epoch=2))


def test_batches_go_on_where_they_were_interrupted():
    order = Order(count=10, batch=4, seed=0, flip=True)
    whole = [order.at(step) for step in range(7)]
    for first in range(7):
        resumed = Order(count=10, batch=4, seed=0, flip=True)
        for step in range(first, 7):
            assert all(
                torch.equal(a, b) for a, b in zip(resumed.at(step), whole[step], strict=True)
            )
    # Two batches of four in an epoch of ten: no image twice.
    indices = [index for index, _ in whole]
    assert len(set(torch.cat(indices[:2]).tolist())) == 8
    assert torch.equal(torch.cat(indices[2:4]), epoch_order(10, 0, 1)[:8])


def test_the_image_and_not_its_place_says_if_it_is_mirrored():
    order = Order(count=10, batch=4, seed=5, flip=True)
    for step in range(6):
        index, mirrored = order.at(step)
        assert torch.equal(mirrored, epoch_flips(10, seed=5, epoch=step // 2)[index])
    plain = Order(count=10, batch=4, seed=5, flip=False)
    assert not any(plain.at(step)[1].any() for step in range(6))
    assert all(torch.equal(plain.at(step)[0], order.at(step)[0]) for step in range(6))


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(BadInput, match="3 images are too few: one batch takes 4"):
        Order(count=3, batch=4, seed=0, flip=False)
