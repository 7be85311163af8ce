"""Flax networks. They know nothing of diffusion, data or training: arrays and a time in, arrays
out."""
