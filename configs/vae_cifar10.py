"""A variational autoencoder of CIFAR-10: 8x8 latents of 4 channels, for latent diffusion.

Paper:    Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models,
          appendix G.1: the network, here with a factor of 4, without the perceptual and the
          adversarial loss. The decoder's distribution is Gaussian, of one learned scale (Rybkin et
          al. 2021).
Command:  python train.py --config configs/vae_cifar10.py --config.data.data_dir=DIR
Hardware: one GPU.
Expected: not yet trained to the end.
"""

from ddpm_jax.experiments.config import default_config


def get_config():
    config = default_config()
    config.objective = "first_stage"
    config.model.ch = 64
    config.model.ch_mult = (1, 2, 4)
    config.model.attn_resolutions = ()
    config.model.dropout = 0.0

    config.first_stage.kind = "vae"
    config.first_stage.latent_channels = 4

    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 1000
    config.ema.decay = 0.999

    config.train.num_steps = 100_000
    config.train.sample_every = 5000
    config.train.num_samples = 16
    return config
