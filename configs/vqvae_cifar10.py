"""A VQ-VAE of CIFAR-10: 8x8 codes of a codebook of 512, 576 bits for an image of 24,576.

Paper:    van den Oord, Vinyals and Kavukcuoglu 2017, Neural Discrete Representation Learning: K =
          512, commitment 0.25, the codebook by moving averages. The network is that of
          configs/vae_cifar10.py.
Command:  python train.py --config configs/vqvae_cifar10.py --config.data.data_dir=DIR
Hardware: one GPU.
Expected: not yet trained to the end.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("vae_cifar10.py"))
    config.first_stage.kind = "vq"
    config.first_stage.latent_channels = 64
    config.first_stage.restart_below = 0.1
    return config
