"""Reading published files: of LDDGAN, of DDGAN and WDDGAN before it, of latent diffusion."""
