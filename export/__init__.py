"""PyTorch -> ONNX: the two graphs, exact rewrites, verification, and the bundle on disk."""
