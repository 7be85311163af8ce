"""Improved DDPM's network and schedule on CIFAR-10, L_simple: the baseline of its ablation.

Paper:    Nichol and Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models, table 2.
Command:  python train.py --config configs/iddpm_cifar10_simple.py --config.data.data_dir=DIR
Hardware: as configs/iddpm_cifar10_hybrid.py.
Expected: 3.26 bits/dim, FID 3.05 after 500,000 steps, with all 4,000 steps of the chain (the
          paper).

Not known: which fixed variance those scores are of. The authors' code has beta (fixed_large) as its
default, as here.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("iddpm_cifar10_hybrid.py"))
    config.diffusion.variance = "fixed_large"
    config.diffusion.loss = "simple"
    return config
