"""A variational autoencoder of the digits that scikit-learn bundles, with true bits per dimension.

Paper:    Kingma and Welling 2014, Auto-Encoding Variational Bayes. The network is that of Rombach et al. 2022, small;
          the decoder's distribution is a discretised logistic one, whose one scale is learned.
Command:  python train.py --config configs/vae_digits.py
Hardware: two CPU cores, a few minutes.
Expected: see docs/first_stages.md.
"""

from ddpm_jax.cli.config import default_config


def get_config():
    config = default_config()
    config.objective = "first_stage"
    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.flip = False  # a mirrored digit is no digit

    config.model.ch = 32
    config.model.ch_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = ()
    config.model.dropout = 0.2  # 1,497 digits are learnt by heart without it

    config.first_stage.kind = "vae"
    config.first_stage.latent_channels = 4  # of 4x4 pixels each
    config.first_stage.family = "discretized_logistic"
    config.first_stage.log_scale = -2.0

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.ema.decay = 0.995

    config.train.num_steps = 2000
    config.train.batch_size = 64
    config.train.log_every = 50
    config.train.sample_every = 500
    config.train.num_samples = 16
    config.checkpoint.save_every = 500
    return config
