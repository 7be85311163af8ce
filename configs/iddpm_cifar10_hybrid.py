"""Improved DDPM on CIFAR-10, L_hybrid: L_simple for the mean and the bound for a learned variance.

Paper:    Nichol and Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models, table 2; the
          flags are those the authors publish with the weights.
Command:  python train.py --config configs/iddpm_cifar10_hybrid.py --config.data.data_dir=DIR
Hardware: not measured. 52.5 M parameters; on a device with less memory raise
          optimizer.accumulate_steps.
Expected: 3.17 bits/dim, FID 3.19 after 500,000 steps, with all 4,000 steps of the chain (the
          paper).

The network is the authors', and so are the loss, the optimiser and the data, which are not
mirrored. The initial weights are DDPM's: theirs are PyTorch's default, uniform within
1/sqrt(fan-in), biases included, and exactly zero where DDPM's are practically zero.
"""

from ddpm_jax.experiments.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.flip = False

    config.diffusion.schedule = "cosine"
    config.diffusion.num_timesteps = 4000
    config.diffusion.rescale_timesteps = True
    config.diffusion.parameterization = "eps"
    config.diffusion.variance = "learned_range"
    config.diffusion.loss = "hybrid"

    config.model.ch = 128
    config.model.ch_mult = (1, 2, 2, 2)
    config.model.num_res_blocks = 3
    config.model.attn_resolutions = (16, 8)
    config.model.num_heads = 4
    config.model.dropout = 0.3
    config.model.scale_shift_norm = True
    config.model.time_embedding = "cos_sin"
    config.model.norm_eps = 1e-5
    config.model.downsample_padding = "both"

    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.0
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.0
    config.ema.decay = 0.9999

    config.train.batch_size = 128
    config.train.num_steps = 500_000
    config.train.sample_steps = 250
    return config
