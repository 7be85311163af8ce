"""DDPM on CIFAR-10 trained on the true bound L: the network predicts eps, the variance is fixed.

Paper:    Ho et al. 2020, Denoising Diffusion Probabilistic Models, table 2: eps prediction, L,
          fixed isotropic Sigma.
Command:  python train.py --config configs/ddpm_cifar10_eps_vlb.py --config.data.data_dir=DIR
Hardware: as configs/ddpm_cifar10.py, the table's "eps prediction, L_simple".
Expected: IS 7.67, FID 13.51; at most 3.70 bits/dim (the paper, tables 1 and 2).

Not known: which fixed variance. Table 2 does not say; section 3.2 finds beta and beta tilde
similar, and the authors' script for CIFAR-10 has beta (fixed_large) as its default, as here.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_cifar10.py"))
    config.diffusion.loss = "vlb"
    # The authors minimise the mean over t of L_t in bits/dim, we the sum, which is T times that.
    # With T times the norm to clip at and T times Adam's eps, the updates are the same.
    config.optimizer.clip_norm *= config.diffusion.num_timesteps
    config.optimizer.eps *= config.diffusion.num_timesteps
    return config
