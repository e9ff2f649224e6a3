"""Training images and the order in which they are seen."""

import sys

import numpy as np
import pytest
import torch

from lddgan.data.feed import Order
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


def test_without_mirroring_the_order_is_the_same():
    order, plain = (Order(count=10, batch=4, seed=5, flip=flip) for flip in (True, False))
    assert not any(plain.at(step)[1].any() for step in range(6))
    assert any(order.at(step)[1].any() for step in range(6))
    assert all(torch.equal(plain.at(step)[0], order.at(step)[0]) for step in range(6))


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(BadInput, match="3 images are too few: one batch takes 4"):
        Order(count=3, batch=4, seed=0, flip=False)
