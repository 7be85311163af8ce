"""EDM's process on CIFAR-10, unconditional, with the U-Net and training of configs/ddpm_cifar10.py.

Paper:    Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models,
          table 1: preconditioning, distribution of noise levels, weighting and sampler. To compare
          processes on equal terms, with ddpm_cifar10 and fm_cifar10; the paper's own experiment,
          with its network, augmentation and training, is configs/edm_cifar10.py.
Command:  python train.py --config configs/edm_unet_cifar10.py --config.data.data_dir=DIR --workdir
          runs/edm_unet_cifar10
Hardware: as configs/ddpm_cifar10.py; not run here.
Expected: not measured.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_cifar10.py"))
    config.diffusion.process = "edm"
    config.diffusion.parameterization = "edm"
    config.diffusion.levels = "lognormal"
    config.diffusion.clip = "none"
    config.train.sample_steps = 18
    return config
