"""Flow matching on the bundled digits: the network, data and training of configs/digits.py.

Paper:    Lipman et al. 2023, Flow Matching for Generative Modeling; Liu et al. 2023, Flow Straight
          and Fast (the linear path, uniform times).
Command:  python train.py --config configs/fm_digits.py
Hardware: two CPU cores, a few minutes.
Expected: see docs/process_family.md, which compares it with configs/digits.py.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("digits.py"))
    config.diffusion.process = "flow"
    config.diffusion.parameterization = "velocity"
    config.diffusion.rescale_timesteps = True  # times of 0..1 vary too little for sines and cosines
    config.diffusion.clip = "none"
    config.train.sample_steps = 50
    return config
