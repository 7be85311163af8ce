"""Improved DDPM on CIFAR-10, L_vlb: the bound for mean and variance, t drawn by importance.

Paper:    Nichol and Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models, table 2 and
          section 3.3.
Command:  python train.py --config configs/iddpm_cifar10_vlb.py --config.data.data_dir=DIR
Hardware: as configs/iddpm_cifar10_hybrid.py.
Expected: 2.94 bits/dim, FID 11.47 after 500,000 steps, with all 4,000 steps of the chain (the
          paper).
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("iddpm_cifar10_hybrid.py"))
    config.diffusion.loss = "vlb"
    config.diffusion.timestep_sampling = "importance"
    return config
