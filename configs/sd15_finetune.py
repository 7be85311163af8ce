"""Fine-tuning of Stable Diffusion 1.x on a folder of captioned images.

Paper:    Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models. The
          network, the noise levels, AdamW and the share of hidden captions are those of the
          released 1.4; the learning rate is a tenth of its own.
Command:  python train.py --config configs/sd15_finetune.py --config.init_from=PATH \
              --config.data.data_dir=FOLDER --workdir runs/mine
          PATH is a directory in diffusers' layout, a single file, or a name on the hub. A low-rank
          update in place of all weights: --config.lora.rank=8 --config.optimizer.learning_rate=1e-4
Hardware: not measured. Weights, average and Adam's two moments are 13.8 GB in float32 beside the
          activations; --config.parallel=fsdp splits them over the devices.
Expected: not trained: the released weights could not be had where this was written.
"""

from ddpm_jax.experiments.config import default_config


def get_config():
    config = default_config()
    config.data.name = "folder"
    config.data.captions = "auto"
    config.data.image_size = 512
    config.data.holdout = 0.02  # their captions are the prompts of the sample grids
    config.data.small = "enlarge"
    config.data.flip = False  # captions may tell left from right
    config.first_stage.ckpt = "init_from"

    config.diffusion.schedule = "scaled_linear"
    config.diffusion.beta_start = 0.00085
    config.diffusion.beta_end = 0.012

    config.model.name = "text_unet"
    config.model.ch = 320
    config.model.ch_mult = (1, 2, 4, 4)
    config.model.attn_resolutions = (64, 32, 16)
    config.model.num_heads = 8
    config.model.downsample_padding = "both"
    config.model.time_embedding = "cos_sin"
    config.model.norm_eps = 1e-5
    config.model.dropout = 0.0
    config.model.dtype = "bfloat16"
    config.model.remat = "blocks"
    config.text.kind = "clip"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.weight_decay = 1e-2
    config.optimizer.warmup_steps = 500
    config.optimizer.clip_scope = "average"
    config.ema.rampup_ratio = 0.05

    config.train.num_steps = 15_000
    config.train.batch_size = 8
    config.train.sample_every = 1000
    config.train.sample_steps = 50
    config.train.num_samples = 8
    config.checkpoint.save_every = 1000
    return config
