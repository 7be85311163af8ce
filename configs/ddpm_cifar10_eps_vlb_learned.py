"""DDPM on CIFAR-10 trained on the bound L: the network predicts eps and the log variance.

Paper:    Ho et al. 2020, Denoising Diffusion Probabilistic Models, table 2: eps prediction, L,
          learned diagonal Sigma.
Command:  python train.py --config configs/ddpm_cifar10_eps_vlb_learned.py
          --config.data.data_dir=DIR
Hardware: as configs/ddpm_cifar10.py.
Expected: no scores: unstable to train, with poor samples (the paper leaves the entry blank).
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_cifar10_eps_vlb.py"))
    config.diffusion.variance = "learned"
    return config
