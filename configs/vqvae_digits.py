"""A VQ-VAE of the bundled digits: 16 codes from a codebook of 64 for an image, 96 bits.

Paper:    van den Oord, Vinyals and Kavukcuoglu 2017, Neural Discrete Representation Learning; the
          codebook is learned by moving averages (appendix A.1), and unused codes are restarted.
Command:  python train.py --config configs/vqvae_digits.py
Hardware: two CPU cores, a few minutes.
Expected: `python evaluate.py --ckpt runs/vqvae_digits --metric elbo,reconstruction`: RMSE 13.2 of
          255, PSNR 26.2 dB, perplexity 57.8 of 64 codes, all of them used, at most 4.35 bits/dim
          (measured, the 300 held-out digits).
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("vae_digits.py"))
    config.first_stage.kind = "vq"
    config.first_stage.num_codes = 64
    config.first_stage.restart_below = 0.5
    return config
