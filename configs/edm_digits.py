"""EDM on the bundled digits: the network, data and training of configs/digits.py.

Paper:    Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models
          (preconditioning, distribution of noise levels, weighting and sampler).
Command:  python train.py --config configs/edm_digits.py
Hardware: two CPU cores, a few minutes.
Expected: see docs/process_family.md, which compares it with configs/digits.py.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("digits.py"))
    config.diffusion.process = "edm"
    config.diffusion.parameterization = "edm"
    config.diffusion.levels = "lognormal"
    config.diffusion.clip = "none"
    config.train.sample_steps = 18
    return config
