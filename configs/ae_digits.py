"""A plain autoencoder of the bundled digits: a quarter of the numbers, and no prior over them.

Paper:    Hinton and Salakhutdinov 2006, Reducing the Dimensionality of Data with Neural Networks
          (the idea); the network is that of configs/vae_digits.py.
Command:  python train.py --config configs/ae_digits.py
Hardware: two CPU cores, a few minutes.
Expected: `python evaluate.py --ckpt runs/ae_digits --metric reconstruction`: RMSE 15.2 of 255, PSNR
          25.2 dB (measured, the 300 held-out digits).
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("vae_digits.py"))
    config.first_stage.kind = "ae"
    config.first_stage.latent_channels = 1  # of 4x4 pixels, for an image of 8x8
    config.first_stage.family = "gaussian"  # of a fixed scale: the squared error
    config.first_stage.scale = "fixed"
    config.first_stage.log_scale = 0.0
    return config
