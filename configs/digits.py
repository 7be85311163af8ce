"""DDPM on the digits that scikit-learn bundles: 1,797 real scans, 8x8, grey. Nothing is downloaded.

Paper:    Ho et al. 2020, Denoising Diffusion Probabilistic Models (the method; a network of 0.76 M
          parameters).
Command:  python train.py
Hardware: two CPU cores, a few minutes.
Expected: `python evaluate.py --ckpt runs/digits` gives a pixel Frechet distance of 0.122 to the
          training digits, 1.17 times that of the held-out digits (measured, 300 samples).
"""

from ddpm_jax.experiments.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.flip = False  # a mirrored digit is no digit

    config.model.ch = 32
    config.model.ch_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = (4,)
    config.model.dropout = 0.0
    # With 32 channels in 32 groups a norm removes whatever is added to a channel, the time too; a
    # scale is not removed.
    config.model.scale_shift_norm = True

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.ema.decay = 0.995

    config.train.num_steps = 2000
    config.train.batch_size = 64
    config.train.log_every = 50
    config.train.sample_every = 500
    config.train.num_samples = 64
    config.checkpoint.save_every = 500
    return config
