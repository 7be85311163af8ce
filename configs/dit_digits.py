"""A small class-conditional Diffusion Transformer on the bundled digits, for guidance too.

Paper:    Peebles and Xie 2023, Scalable Diffusion Models with Transformers (the network: patches,
          adaLN-Zero; here of 0.72 M parameters and over pixels). Data and training are those of
          configs/digits_cond.py otherwise.
Command:  python train.py --config configs/dit_digits.py
Hardware: two CPU cores; 154 images/s with eight other processes on them, 192,000 images in all.
Expected: `python evaluate.py --ckpt runs/dit_digits` gives a pixel Frechet distance of 0.150 to the
          training digits, 1.43 times that of the held-out digits (measured, 300 samples; after
          2,000 steps 1.69); the U-Net of configs/digits.py has 1.17. In the sample grid each row is
          a class.
"""

import pathlib

from ddpm_jax.experiments.config import default_config, load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("digits_cond.py"))
    config.model.update(default_config().model)  # nothing of the U-Net
    config.model.name = "dit"
    config.model.dropout = 0.0
    config.model.time_embedding = "cos_sin"
    config.dit.size = "custom"
    config.dit.hidden_size = 96
    config.dit.depth = 4
    config.dit.num_heads = 4
    config.dit.patch_size = 2  # sixteen tokens

    config.optimizer.learning_rate = 2e-3
    config.ema.decay = 0.995
    config.train.num_steps = 3000
    config.checkpoint.save_every = 500
    return config
