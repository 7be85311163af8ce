"""A config for test_kill.py: the real program on the digits, small enough to be killed often; a
save every 4 steps."""

from ddpm_jax.experiments.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.diffusion.num_timesteps = 10
    config.diffusion.schedule = "cosine"
    config.diffusion.timestep_sampling = "importance"
    config.model.ch = 32
    config.model.ch_mult = (1,)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = ()
    config.optimizer.warmup_steps = 5
    config.ema.decay = 0.9
    config.train.num_steps = 60
    config.train.batch_size = 8
    config.train.log_every = 1
    config.train.sample_every = 0
    config.train.num_samples = 1
    config.train.sample_steps = 2
    config.checkpoint.save_every = 4
    return config
