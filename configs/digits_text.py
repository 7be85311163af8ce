"""Text to image on the bundled digits: captions such as "a handwritten seven".

Paper:    Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models, section
          3.3 (cross-attention to a transformer that is learned along, here over pixels); Ho and
          Salimans 2022 (hidden captions). The data and its training are those of configs/digits.py.
Command:  python train.py --config configs/digits_text.py
          python sample.py --ckpt runs/digits_text --prompt "a handwritten seven" --num_samples 16
Hardware: two CPU cores, five minutes.
Expected: in all of 300 samples by the captions of held-out digits a classifier reads the digit that
          the caption names (`evaluate.py --metric caption_accuracy`); of the held-out digits
          themselves it reads 98.0 +- 0.8 %.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("digits.py"))
    config.data.captions = "auto"
    config.model.name = "text_unet"
    config.model.num_heads = 4
    # The first 1,000 tokens of CLIP's vocabulary: letters, and what digits are called.
    config.text.vocab_size = 1000
    config.text.length = 16
    config.text.width = 64
    config.text.layers = 2
    config.text.heads = 4
    config.text.hidden = 256
    config.text.guidance = 2.0
    config.train.num_samples = 40
    return config
