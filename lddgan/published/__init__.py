"""Reading the files that the authors of LDDGAN and latent diffusion published."""
