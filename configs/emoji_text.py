"""Text to image on the bundled emoji, in the latents of emoji_vae: prompts such as "red heart".

Paper:    Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models, section
          3.3 (cross-attention to a transformer that is learned along); Ho and Salimans 2022 (hidden
          captions). The network is Stable Diffusion's, small.
Command:  python train.py --config configs/emoji_vae.py
          python train.py --config configs/emoji_text.py
          python sample.py --ckpt runs/emoji_text --prompt "red heart" --num_samples 16
Hardware: two CPU cores, about an hour; minutes on a GPU.
Expected: of 186 samples by held-out captions 72 +- 3 % lie nearest to a training picture of their
          category (40 % by chance, of the held-out pictures themselves 84 %), and 40 +- 4 % have a
          picture of their own caption among the 5 nearest (2.7 % by chance).
"""

from ddpm_jax.experiments.config import default_config


def get_config():
    config = default_config()
    config.data.name = "emoji"
    config.data.captions = "auto"
    config.data.flip = False  # captions tell left from right
    config.first_stage.ckpt = "runs/emoji_vae"
    config.diffusion.schedule = "scaled_linear"

    config.model.name = "text_unet"
    config.model.ch = 64
    config.model.ch_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = (8, 4)
    config.model.num_heads = 4
    config.model.dropout = 0.0
    config.model.scale_shift_norm = True

    config.text.vocab_size = 8192
    config.text.length = 24
    config.text.width = 128
    config.text.layers = 3
    config.text.heads = 4
    config.text.hidden = 512
    config.text.guidance = 3.0

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.decay = "cosine"
    config.ema.decay = 0.999

    config.train.num_steps = 10_000
    config.train.batch_size = 32
    config.train.log_every = 100
    config.train.sample_every = 2000
    config.train.sample_steps = 50
    config.train.num_samples = 32
    config.checkpoint.save_every = 1000
    return config
