"""Training in two stages: the autoencoder, then the diffusion GAN on its latents."""
