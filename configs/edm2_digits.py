"""EDM2's network on the bundled digits: the data and process of configs/edm_digits.py.

Paper:    Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models
          (configuration G: magnitude-preserving layers, learned weighting of noise levels).
Command:  python train.py --config configs/edm2_digits.py
Hardware: two CPU cores, a few minutes.
Expected: see docs/process_family.md, which compares it with configs/edm_digits.py.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("edm_digits.py"))
    config.model.name = "edm2_unet"
    config.model.scale_shift_norm = False
    config.diffusion.weighting = "learned"
    config.optimizer.learning_rate = 3e-2
    config.optimizer.decay = "cosine"
    config.ema.sigma_rel = 0.1  # gains begin at 0, which an average of one decay forgets slowly
    return config
