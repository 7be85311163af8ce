"""Super-resolution of the bundled digits: 4x4 pixels to 8x8 by diffusion.

Paper:    Saharia et al. 2021, Image Super-Resolution via Iterative Refinement (the low-resolution
          image, enlarged, as further channels of the network's input). The network and its training
          are those of configs/digits.py otherwise, and so are the schedule and the time; enlarging
          is bilinear, the paper's bicubic.
Command:  python train.py --config configs/digits_sr.py
Hardware: two CPU cores, a few minutes.
Expected: in the sample grid, between the 4x4 image and the original, digits that agree with the
          first.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("digits.py"))
    config.condition.low_res_factor = 2
    config.train.num_samples = 48
    return config
