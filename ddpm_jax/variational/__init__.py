"""Latent variable models as pure functions: posterior, likelihood, bounds, codebooks.

Mathematics over arrays with jax, numpy and chex belongs here; networks, configs and files do not.
Noise is an argument.
"""
