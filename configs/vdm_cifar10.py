"""A variational diffusion model of CIFAR-10, by the bound of continuous time.

Paper:    Kingma et al. 2021, Variational Diffusion Models; the network without down-sampling, the
          optimiser and the ends of the levels are those of their code for images that are not
          augmented.
Command:  python train.py --config configs/vdm_cifar10.py --config.data.data_dir=DIR --workdir
          runs/vdm_cifar10
Hardware: not run here. The authors trained 10 M updates on TPUs.
Expected: 2.65 bits/dim at most, by the paper, whose decoder is that of the loss; not measured here.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_cifar10.py"))
    config.data.flip = False

    config.diffusion.process = "vdm"
    config.diffusion.variance = "posterior"
    config.diffusion.timestep_sampling = "low_discrepancy"

    config.model.ch_mult = (1,)
    config.model.num_res_blocks = 32
    config.model.attn_resolutions = ()  # between the ways down and up alone
    config.model.fourier_features = (7, 8)

    config.optimizer.name = "adamw"
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 0.0
    config.train.num_steps = 10_000_000
    return config
