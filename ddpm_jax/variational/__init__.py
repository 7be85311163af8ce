"""Models with a latent variable, as pure functions: posterior, the decoder's distribution, bounds,
codebooks.

Belongs here: mathematics over arrays with jax, numpy and chex. Does not: networks, configs, files,
and randomness of its own (noise is an argument).
"""
