"""Latent diffusion on the bundled digits: DDPM over the 4x4 latents of a VAE that is trained first.

Paper:    Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models (the method, small).
Command:  python train.py --config configs/vae_digits.py
          python train.py --config configs/ldm_digits.py --config.first_stage.ckpt=runs/vae_digits
Hardware: two CPU cores, a few minutes each.
Expected: see docs/first_stages.md.
"""

import pathlib

from ddpm_jax.cli.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("digits.py"))
    config.first_stage.ckpt = "runs/vae_digits"
    return config
