"""Training images: where they come from (`opening`, `digits`) and how they are read.

The training loop knows images only as `images.Images`: something with a length that turns indices
into a batch.  A tensor [N,3,H,W] is one already.  Looking at files (`check`) needs no PyTorch.
"""
