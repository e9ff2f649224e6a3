"""One room for each engine; engine/registry.py lists them."""
