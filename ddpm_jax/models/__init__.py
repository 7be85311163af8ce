"""Flax networks: arrays and a time in, arrays out; nothing of diffusion, data or training."""
