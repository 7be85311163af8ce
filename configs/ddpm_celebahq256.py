"""DDPM on CelebA-HQ at 256x256.

Paper:    Ho et al. 2020, Denoising Diffusion Probabilistic Models, appendix B.
Command:  python train.py --config configs/ddpm_celebahq256.py --config.data.data_dir=DIR --workdir
          runs/celebahq
Hardware: TPU v3-8, 2.2 steps/s (the paper), so 63 h for 500,000 steps. 113.7 M parameters; on a
          device with less memory raise optimizer.accumulate_steps or set model.remat.
Expected: the paper shows samples and gives no score.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_lsun_church.py"))
    config.data.name = "celeb_a_hq/256"
    config.data.holdout = 0.01  # TFDS has only a training split
    config.train.num_steps = 500_000
    return config
