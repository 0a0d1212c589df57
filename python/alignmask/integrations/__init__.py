"""Our kernels inside other people's models."""
