"""A variational autoencoder of the bundled emoji, 32x32, for diffusion in its latents.

Paper:    Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models,
          appendix G: a KL that only keeps the latents bounded, here of weight 0.001 beside a
          Gaussian of learned scale; small, with a factor of 4, without the perceptual and the
          adversarial loss.
Command:  python train.py --config configs/emoji_vae.py
Hardware: two CPU cores, about ten minutes.
Expected: reconstructions of the held-out pictures at 28.7 +- 0.2 dB, 10.4 of 255 off.
"""

from ddpm_jax.experiments.config import default_config


def get_config():
    config = default_config()
    config.objective = "first_stage"
    config.data.name = "emoji"
    config.data.flip = False  # captions tell left from right

    config.model.ch = 32
    config.model.ch_mult = (1, 1, 2)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = ()
    config.model.dropout = 0.0

    config.first_stage.kind = "vae"
    config.first_stage.latent_channels = 8  # of 8x8 pixels each
    config.first_stage.beta = 0.001

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"
    config.ema.decay = 0.995

    config.train.num_steps = 4000
    config.train.batch_size = 8
    config.train.log_every = 100
    config.train.sample_every = 1000
    config.train.num_samples = 16
    config.checkpoint.save_every = 1000
    return config
