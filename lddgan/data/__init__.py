"""Training images: where they are (`open_source`, needs no torch), how they are read."""
