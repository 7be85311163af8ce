"""DDPM on CIFAR-10 trained on the true bound L: the network predicts mu, the variance is fixed.

Paper:    Ho et al. 2020, Denoising Diffusion Probabilistic Models, table 2: mu prediction, L, fixed
          isotropic Sigma.
Command:  python train.py --config configs/ddpm_cifar10_mu_vlb.py --config.data.data_dir=DIR
Hardware: as configs/ddpm_cifar10.py.
Expected: IS 8.06, FID 13.22 (the paper). Which fixed variance is not known, as in
          configs/ddpm_cifar10_eps_vlb.py.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_cifar10_eps_vlb.py"))
    config.diffusion.parameterization = "mu"
    return config
