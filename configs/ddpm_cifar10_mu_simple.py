"""DDPM on CIFAR-10 trained on the unweighted squared error of mu, the variance fixed.

Paper:    Ho et al. 2020, Denoising Diffusion Probabilistic Models, table 2: mu prediction, |mu -
          mu_theta|^2.
Command:  python train.py --config configs/ddpm_cifar10_mu_simple.py --config.data.data_dir=DIR
Hardware: as configs/ddpm_cifar10.py.
Expected: no scores: unstable to train, with poor samples (the paper leaves the entry blank). Which
          fixed variance is not known, as in configs/ddpm_cifar10_eps_vlb.py; the loss does not
          depend on it.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_cifar10.py"))
    config.diffusion.parameterization = "mu"
    return config
