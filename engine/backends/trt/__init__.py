"""TensorRT and TensorRT-RTX: building plans of a bundle's graphs, keeping and running them."""
