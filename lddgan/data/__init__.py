"""Training images: where they come from and in which order they are seen.

The training loop knows images only as `Images`: something with a length that turns indices into a
batch.  A tensor [N,3,H,W] is one already.
"""

from __future__ import annotations

from lddgan.data.digits import digits, enlarge
from lddgan.data.images import ImageFiles, Images
from lddgan.data.opening import open_source
from lddgan.data.order import batches, batches_per_epoch, epoch_flips, epoch_order

__all__ = [
    "ImageFiles",
    "Images",
    "batches",
    "batches_per_epoch",
    "digits",
    "enlarge",
    "epoch_flips",
    "epoch_order",
    "open_source",
]
