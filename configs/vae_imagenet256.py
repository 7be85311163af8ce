"""The first stage of Stable Diffusion: 256x256 images to 32x32 latents of 4 channels.

Paper:    Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models,
          appendix G: KL-f8. A KL of weight 1e-6, LPIPS of weight 1, and from 50,001 updates on a
          discriminator times 0.5. 83.7 M parameters. The authors trained on OpenImages with the
          absolute error; here the decoder is Gaussian, with one learned scale.
Weights:  those that are published are read by `ddpm-jax import-first-stage` with this
          config.
Command:  python train.py --config configs/vae_imagenet256.py --config.sharp.perceptual_file=FILE
Hardware: several GPUs, or a TPU slice.
Expected: the published autoencoder, of 246,803 updates, has a reconstruction FID of 4.99 and a PSNR
          of 23.4 dB on the validation images of COCO 2017 (model card of its finetuned successors).
          Not run here.
"""

from ddpm_jax.experiments.config import default_config


def get_config():
    config = default_config()
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"
    config.data.image_size = 256
    config.objective = "first_stage"
    config.model.ch = 128
    config.model.ch_mult = (1, 2, 4, 4)
    config.model.attn_resolutions = ()
    config.model.dropout = 0.0

    config.first_stage.kind = "vae"
    config.first_stage.latent_channels = 4
    config.first_stage.beta = 1e-6

    config.sharp.perceptual_weight = 1.0
    config.sharp.adversarial_weight = 0.5
    config.sharp.start_step = 50_001

    config.optimizer.learning_rate = 5.4e-5  # 4.5e-6 an image
    config.optimizer.b1 = config.sharp.discriminator_b1
    config.optimizer.b2 = config.sharp.discriminator_b2
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.0
    config.sharp.discriminator_learning_rate = 5.4e-5
    config.train.batch_size = 12  # on one GPU; its rate grows with the number of GPUs
    config.train.num_steps = 246_803
    config.train.num_samples = 16
    return config
