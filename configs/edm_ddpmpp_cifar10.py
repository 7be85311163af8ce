"""EDM on CIFAR-10, unconditional, with its network and augmentation: configuration F.

Paper:    Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models,
          table 2, "VP": DDPM++ (Song et al. 2021), each transformation with probability 0.12.
Command:  python train.py --config configs/edm_ddpmpp_cifar10.py --config.data.data_dir=DIR
          --workdir runs/edm_ddpmpp_cifar10
Hardware: not run here. The authors trained for 200 M images, 2 days on 8 V100.
Expected: FID 1.97 with 35 evaluations, by the paper; not measured here.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("edm_cifar10.py"))
    config.data.flip = False  # the augmentation flips, and conditions the network on it
    config.data.augment = 0.12
    config.model.name = "song_unet"
    config.model.ch_mult = (2, 2, 2)
    config.model.num_res_blocks = 4
    config.edm_unet.augment_dim = 9
    return config
