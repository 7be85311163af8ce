"""DDPM on CIFAR-10 by class, with a tenth of the labels hidden for classifier-free guidance.

Paper:    Ho and Salimans 2022, Classifier-Free Diffusion Guidance: the method, here with the
          network, loss and optimiser of Ho et al. 2020; the class embedding is added to that of the
          time as in Dhariwal and Nichol 2021.
Command:  python train.py --config configs/ddpm_cifar10_cond.py --config.data.data_dir=DIR
Hardware: not measured. 35.8 M parameters; it costs what configs/ddpm_cifar10.py costs.
Expected: not measured; the papers have no CIFAR-10 result of this model.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_cifar10.py"))
    config.condition.num_classes = 10
    config.condition.label_dropout = 0.1
    config.train.num_samples = 80  # eight of each class
    return config
