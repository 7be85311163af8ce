"""EDM on CIFAR-10, unconditional: configuration F of the paper, network and augmentation included.

Paper:    Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models,
          tables 1, 2 and 8, "VP": DDPM++ (Song et al. 2021) of 56 M parameters, each transformation
          of a training image with probability 0.12; they are conditions of the network.
          configs/edm_unet_cifar10.py has the network and training of DDPM instead.
Command:  python train.py --config configs/edm_cifar10.py --config.data.data_dir=DIR --workdir
          runs/edm_cifar10
Hardware: not run here. The authors trained for 200 M images, 2 days on 8 V100.
Expected: FID 1.97 with 35 evaluations, by the paper; not measured here.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("edm_unet_cifar10.py"))
    config.data.flip = False  # the augmentation flips, and conditions the network on it
    config.data.augment = 0.12
    config.model.name = "song_unet"
    config.model.ch_mult = (2, 2, 2)
    config.model.num_res_blocks = 4
    config.model.dropout = 0.13
    config.edm_unet.augment_dim = 9
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20_000  # 10 M images
    config.optimizer.clip_norm = 0.0
    config.train.batch_size = 512
    config.train.num_steps = 390_000
    config.ema.decay = 0.99929  # half in 0.5 M images
    config.ema.rampup_ratio = 0.05
    return config
