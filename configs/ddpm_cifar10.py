"""DDPM on CIFAR-10, unconditional: the model of the paper's table 1.

Paper:    Ho et al. 2020, Denoising Diffusion Probabilistic Models, L_simple with fixed-large
          variance.
Command:  python train.py --config configs/ddpm_cifar10.py --config.data.data_dir=DIR --workdir
          runs/cifar10
Hardware: TPU v3-8, 21 steps/s, 10.6 h for 800,000 steps (the paper). 35.7 M parameters.
Expected: IS 9.46, FID 3.17 against the training set with 50,000 EMA samples; at most 3.75 bits/dim
          (the paper).

To reproduce the paper on other numbers of devices: the original clips the gradient of each of 8
replicas of 16 images before averaging (clip_scope "replica"); on one device that clips the gradient
of all 128.
"""

from ddpm_jax.experiments.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.flip = True

    config.diffusion.schedule = "linear"
    config.diffusion.num_timesteps = 1000
    config.diffusion.parameterization = "eps"
    config.diffusion.variance = "fixed_large"
    config.diffusion.loss = "simple"

    config.model.ch = 128
    config.model.ch_mult = (1, 2, 2, 2)
    config.model.num_res_blocks = 2
    config.model.attn_resolutions = (16,)
    config.model.dropout = 0.1

    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.clip_norm = 1.0
    config.optimizer.clip_scope = "replica"
    config.ema.decay = 0.9999

    config.train.batch_size = 128
    config.train.num_steps = 800_000
    return config
