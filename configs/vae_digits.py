"""A variational autoencoder of the digits that scikit-learn bundles, with true bits per dimension.

Paper:    Kingma and Welling 2014, Auto-Encoding Variational Bayes. The network is that of Rombach
          et al. 2022, small; the decoder's distribution is a discretised logistic one, whose one
          scale is learned.
Command:  python train.py --config configs/vae_digits.py
Hardware: two CPU cores, a few minutes.
Expected: `python evaluate.py --ckpt runs/vae_digits --metric elbo,reconstruction --draws 64`: at
          most 3.59 bits/dim, 3.50 by the importance-weighted bound, RMSE 20.6 of 255 (measured, the
          300 held-out digits).
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("digits.py"))
    config.objective = "first_stage"
    config.model.attn_resolutions = ()
    config.model.scale_shift_norm = False  # there is no time
    config.model.dropout = 0.2  # 1,497 digits are memorised without it

    config.first_stage.kind = "vae"
    config.first_stage.latent_channels = 4  # of 4x4 pixels each
    config.first_stage.family = "discretized_logistic"
    config.first_stage.log_scale = -2.0

    config.optimizer.learning_rate = 1e-3
    config.train.num_samples = 16
    return config
