"""Latent diffusion on the bundled digits: DDPM over the 4x4 latents of a VAE that is trained first.

Paper:    Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models (the
          method, small).
Command:  python train.py --config configs/vae_digits.py
          python train.py --config configs/ldm_digits.py --config.first_stage.ckpt=runs/vae_digits
Hardware: two CPU cores, a few minutes each.
Expected: `python evaluate.py --ckpt runs/ldm_digits` gives a pixel Frechet distance of 0.229 to the
          training digits, 2.2 times that of the held-out digits and 1.9 times that of the pixel
          model (measured, 300 samples). Of the same number of digits that the VAE encodes and
          decodes it is 0.10 to 0.12.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("digits.py"))
    config.first_stage.ckpt = "runs/vae_digits"
    config.model.ch = 64
    # z is sampled each time, so the loss is noisier than over pixels: smaller steps at the end, and
    # a longer average.
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay = "cosine"
    config.ema.decay = 0.998
    config.train.num_steps = 2500
    return config
