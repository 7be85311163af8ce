"""DDPM on CIFAR-10 trained on the bound L: the network predicts mu and the log variance.

Paper:    Ho et al. 2020, Denoising Diffusion Probabilistic Models, table 2: mu prediction, L,
          learned diagonal Sigma.
Command:  python train.py --config configs/ddpm_cifar10_mu_vlb_learned.py --config.data.data_dir=DIR
Hardware: as configs/ddpm_cifar10.py.
Expected: IS 7.28, FID 23.69 (the paper).
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_cifar10_mu_vlb.py"))
    config.diffusion.variance = "learned"
    return config
