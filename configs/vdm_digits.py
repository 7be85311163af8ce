"""A variational diffusion model of the digits: network, data and training of configs/digits.py.

Paper:    Kingma et al. 2021, Variational Diffusion Models (levels learned with the network, the
          continuous bound, its variance minimised, Fourier features).
Command:  python train.py --config configs/vdm_digits.py
Hardware: two CPU cores, a few minutes.
Expected: `python evaluate.py --ckpt runs/vdm_digits --metric bpd --timestep_stride 10` gives at
          most 1.83 bits/dim of the held-out digits, configs/digits.py 4.51 (measured).
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("digits.py"))
    config.diffusion.process = "vdm"
    config.diffusion.variance = "posterior"
    config.diffusion.timestep_sampling = "low_discrepancy"
    # The scans have 17 values, 1/8 apart on [-1, 1]: a period of sin(2^4 pi x).
    config.model.fourier_features = (3, 4)
    config.train.sample_steps = 100
    return config
