"""EDM on CIFAR-10, unconditional: its process, preconditioning and training, with DDPM's U-Net.

Paper:    Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models,
          table 1; its dropout and moving average.
Command:  python train.py --config configs/edm_cifar10.py --config.data.data_dir=DIR --workdir
          runs/edm_cifar10
Hardware: not run here. The authors trained for 200 M images, 2 days on 8 V100.
Expected: FID 1.97 with 35 evaluations, by the paper, whose network is DDPM++ of 56 M parameters and
          whose training images are augmented; not measured with this network.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_cifar10.py"))
    config.diffusion.process = "edm"
    config.diffusion.parameterization = "edm"
    config.diffusion.levels = "lognormal"
    config.diffusion.clip = "none"
    config.model.dropout = 0.13
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20_000  # 10 M images
    config.optimizer.clip_norm = 0.0
    config.train.batch_size = 512
    config.train.num_steps = 390_000
    config.ema.decay = 0.99929  # half in 0.5 M images
    config.ema.rampup_ratio = 0.05
    config.train.sample_steps = 18
    return config
