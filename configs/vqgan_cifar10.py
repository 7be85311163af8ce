"""A VQGAN of CIFAR-10: configs/vqvae_cifar10.py with perceptual and adversarial loss.

Paper:    Esser, Rombach and Ommer 2021, Taming Transformers for High-Resolution Image Synthesis;
          Rombach et al. 2022. Squared error (a Gaussian of scale 1), LPIPS with weight 1, and from
          a start step on a patch discriminator with hinge loss and the adaptive weight, times 0.8
          as in the authors' configs; Adam with betas 0.5 and 0.9 for both players. What is departed
          from: docs/first_stages.md, "Sharp reconstructions".
Command:  python train.py --config configs/vqgan_cifar10.py --config.data.data_dir=DIR \
          --config.sharp.perceptual_file=FILE
Hardware: one GPU.
Expected: not yet trained to the end.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("vqvae_cifar10.py"))
    config.first_stage.scale = "fixed"

    config.sharp.perceptual_weight = 1.0
    config.sharp.adversarial_weight = 0.8
    config.sharp.start_step = 20_000
    config.sharp.discriminator_layers = 2  # a logit sees 34x34 pixels, as much as there is

    config.optimizer.b1 = config.sharp.discriminator_b1
    config.optimizer.b2 = config.sharp.discriminator_b2
    config.optimizer.clip_norm = 0.0
    return config
