"""Denoising diffusion in JAX: pure functions over pytrees, from the schedule to the sampler.

Folders are concepts; a lower layer never imports a higher one (`tests/test_layering.py` enforces
it):

    L0  diffusion, samplers, variational           the mathematics: arrays in, arrays out
    L1  models, data                               networks; pictures on disk -> uint8 batches
    L2  training, evaluation, interop, plotting    what turns the parts into experiments
    L3  cli                                        flags and configs, and nothing else

`errors`, `files` and `locks` are below all of them.
"""

__version__ = "0.1.0"
