"""Class-conditional SiT-XL/2 on the latents of Stable Diffusion's autoencoder, ImageNet 256x256.

Paper:    Ma et al. 2024, SiT: Exploring Flow and Diffusion-based Generative Models with Scalable
          Interpolant Transformers: the linear path and its velocity, uniform times. First stage,
          data, network and optimiser are those of configs/ldm_dit_imagenet256.py.
Command:  python train.py --config configs/sit_imagenet256.py --config.first_stage.ckpt=runs/sd_vae
          (on TPU or GPU with --config.model.dtype=bfloat16 --config.parallel=fsdp)
Hardware: not run here.
Expected: FID-50K by the paper after 7 M steps: 8.61 by the ODE, 2.15 with --guidance_scale 1.5.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ldm_dit_imagenet256.py"))
    config.diffusion.process = "flow"
    config.diffusion.parameterization = "velocity"
    config.diffusion.rescale_timesteps = True
    config.diffusion.variance = "fixed_large"
    config.diffusion.loss = "simple"
    config.train.sample_steps = 50
    return config
