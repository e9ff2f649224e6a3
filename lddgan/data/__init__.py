"""Training images: where they are (`open_source`), how they are read (`images`, `feed`).

The training knows images only as `images.Images`.  `sources` needs no PyTorch.
"""
