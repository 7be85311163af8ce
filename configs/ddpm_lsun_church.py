"""DDPM on LSUN Church at 256x256.

Paper:    Ho et al. 2020, Denoising Diffusion Probabilistic Models, appendix B.
Command:  python train.py --config configs/ddpm_lsun_church.py --config.data.data_dir=DIR --workdir
          runs/church
Hardware: TPU v3-8, 2.2 steps/s (the paper), so 152 h for 1,200,000 steps. 113.7 M parameters; on a
          device with less memory raise optimizer.accumulate_steps or set model.remat.
Expected: FID 7.89 with 50,000 EMA samples (the paper, table 3).
"""

from ddpm_jax.experiments.config import default_config


def get_config():
    config = default_config()
    config.data.name = "lsun/church_outdoor"
    config.data.image_size = 256
    config.data.channels = 3
    config.data.flip = True

    config.diffusion.schedule = "linear"
    config.diffusion.num_timesteps = 1000
    config.diffusion.parameterization = "eps"
    config.diffusion.variance = "fixed_small"
    config.diffusion.loss = "simple"

    config.model.ch = 128
    config.model.ch_mult = (1, 1, 2, 2, 4, 4)
    config.model.num_res_blocks = 2
    config.model.attn_resolutions = (16,)
    config.model.dropout = 0.0

    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_steps = 5000
    config.optimizer.clip_norm = 1.0
    config.optimizer.clip_scope = "replica"
    config.ema.decay = 0.9999

    config.train.batch_size = 64
    config.train.num_steps = 1_200_000
    config.train.num_samples = 16
    config.train.sample_steps = 250
    return config
