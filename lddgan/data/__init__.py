"""Training images: where they are (`open_source`, `digits`), how they are read (`images`, `feed`).

The training knows images only as `images.Images`.  Checking files (`check`) needs no PyTorch.
"""
