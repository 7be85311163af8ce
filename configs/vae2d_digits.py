"""A variational autoencoder of the bundled digits with a latent of two numbers, for plotting.

Paper:    Kingma and Welling 2014, Auto-Encoding Variational Bayes, figure 4: the plane that the
          decoder has learned. The network is that of configs/vae_digits.py with two levels more,
          down to one pixel.
Command:  python train.py --config configs/vae2d_digits.py
Hardware: two CPU cores, a few minutes.
Expected: samples/step_00002000_walk.png is like the figure, with every digit in it; `python
          evaluate.py --ckpt runs/vae2d_digits --metric elbo,reconstruction --draws 64`: at most
          3.77 bits/dim, RMSE 41.0 of 255 (measured, the 300 held-out digits).
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("vae_digits.py"))
    # for initial weights that do not make one of the two numbers much weaker than the other
    config.seed = 5
    # at one pixel a norm sees 4 numbers: 128 channels in 32 groups
    config.model.ch_mult = (1, 1, 2, 4)
    # A norm over one pixel would keep the angle of z but remove its length; this keeps both.
    config.model.norm_eps = 0.05
    config.model.dropout = 0.0
    config.first_stage.latent_channels = 2
    config.first_stage.free_nats = 1.0  # of each of them
    return config
