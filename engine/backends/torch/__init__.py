"""PyTorch: the baseline, and its compiler."""
