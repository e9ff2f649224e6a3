"""What runs on an NVIDIA GPU without PyTorch: device, memory and graphs; the noise kernel."""
