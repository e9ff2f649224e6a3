"""The engine `fused`: PyTorch's convolutions, and Triton kernels for all that is between them."""
