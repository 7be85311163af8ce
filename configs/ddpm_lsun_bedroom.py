"""DDPM on LSUN Bedroom at 256x256.

Paper:    Ho et al. 2020, Denoising Diffusion Probabilistic Models, appendix B.
Command:  python train.py --config configs/ddpm_lsun_bedroom.py --config.data.data_dir=DIR --workdir runs/bedroom
Hardware: TPU v3-8, 2.2 steps/s (the paper), so 303 h for 2,400,000 steps. 113.7 M parameters; on a device with
          less memory raise optimizer.accumulate_steps or set model.remat.
Expected: FID 6.36 with 50,000 EMA samples (the paper, table 3). No mirroring, as in the paper.
"""

from ddpm_jax.cli.config import default_config


def get_config():
    config = default_config()
    config.data.name = "lsun/bedroom"
    config.data.image_size = 256
    config.data.channels = 3
    config.data.flip = False

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
    config.train.num_steps = 2_400_000
    config.train.num_samples = 16
    config.train.sample_steps = 250
    return config
