"""Class-conditional DiT-XL/2 on the latents of Stable Diffusion's autoencoder, ImageNet 256x256.

Paper:    Peebles and Xie 2023, Scalable Diffusion Models with Transformers, section 4. Betas,
          variance and loss are those of Dhariwal and Nichol 2021 (ADM); 675 M parameters.
First:    The first stage has to be supplied: the file of Stable Diffusion's VAE "sd-vae-ft", as
          diffusers lays it out.
          ddpm-jax import-first-stage --config configs/vae_imagenet256.py
          --weights FILE --out runs/sd_vae
          Its latents of 32x32x4 are multiplied by 0.18215.
Data:     TFDS imagenet2012, which has to be downloaded by hand from image-net.org.
Command:  python train.py --config configs/ldm_dit_imagenet256.py
          --config.first_stage.ckpt=runs/sd_vae (on TPU or GPU with --config.model.dtype=bfloat16
          --config.parallel=fsdp)
Hardware: the authors' TPU v3-256 made 5.7 steps/s, 7 M steps in two weeks. Not run here.
Expected: FID-50K of 250 ancestral steps, by the paper: 19.47 after 400,000 steps, 9.62 after 7 M,
          and 2.27 with --guidance_scale 1.5, for which the authors guide three of the four
          channels. After 400,000 steps the smaller networks (--config.dit.size=S, B, L) reach
          68.40, 43.47 and 23.33.
"""

from ddpm_jax.experiments.config import default_config


def get_config():
    config = default_config()
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"
    config.data.image_size = 256

    config.first_stage.ckpt = "runs/sd_vae"
    config.first_stage.latent_scale = 0.18215

    config.diffusion.schedule = "linear"
    config.diffusion.num_timesteps = 1000
    config.diffusion.variance = "learned_range"
    config.diffusion.loss = "hybrid"

    config.model.name = "dit"
    config.model.dropout = 0.0
    config.model.time_embedding = "cos_sin"
    config.dit.size = "XL"
    config.dit.patch_size = 2
    config.condition.num_classes = 1000
    config.condition.label_dropout = 0.1

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.0
    config.ema.decay = 0.9999

    config.train.num_steps = 7_000_000
    config.train.batch_size = 256
    config.train.sample_every = 50_000
    config.train.sample_steps = 250
    config.checkpoint.save_every = 10_000
    return config
