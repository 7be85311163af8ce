"""Flow matching on CIFAR-10, unconditional, with DDPM's U-Net and training.

Paper:    Lipman et al. 2023, Flow Matching for Generative Modeling (the linear path, "OT"; uniform
          times).
Command:  python train.py --config configs/fm_cifar10.py --config.data.data_dir=DIR --workdir
          runs/fm_cifar10
Hardware: as configs/ddpm_cifar10.py; not run here.
Expected: 2.99 bits/dim and FID 6.35 by the paper, with a larger network (table 1).
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_cifar10.py"))
    config.diffusion.process = "flow"
    config.diffusion.parameterization = "velocity"
    config.diffusion.rescale_timesteps = True
    config.diffusion.clip = "none"
    config.train.sample_steps = 50
    return config
