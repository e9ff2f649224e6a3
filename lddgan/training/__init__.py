"""Training: the autoencoder (`codec`), then the diffusion GAN on its latents (`gan`).

Each is a stage of its own with a folder for what it writes; `loop` makes the steps of both.
"""
