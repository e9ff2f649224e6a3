"""Running a bundle: the sampler, and the engines under it."""
