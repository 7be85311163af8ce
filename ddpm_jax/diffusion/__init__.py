"""The process and its bound as pure functions of arrays.

Schedules, q and p, parameterisations, losses and the terms of the bound.

Belongs here: mathematics over arrays with jax, numpy and chex. Does not: Flax, configs, files, and
randomness of its own (noise and drawn timesteps are arguments, or are made from keys that are). The
time index t is 0-based everywhere: t = 0 is the least noisy step, t = T-1 the noisiest.
"""
