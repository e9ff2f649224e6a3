"""The networks of LDDGAN in plain PyTorch; parameter names are those of published checkpoints."""
