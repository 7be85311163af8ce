"""DDPM on LSUN Cat at 256x256.

Paper:    Ho et al. 2020, Denoising Diffusion Probabilistic Models, appendix B.
Command:  python train.py --config configs/ddpm_lsun_cat.py --config.data.data_dir=DIR --workdir
          runs/cat
Hardware: TPU v3-8, 2.2 steps/s (the paper), so 227 h for 1,800,000 steps. 113.7 M parameters; on a
          device with less memory raise optimizer.accumulate_steps or set model.remat.
Expected: FID 19.75 with 50,000 EMA samples (the paper, table 3).
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_lsun_church.py"))
    config.data.name = "lsun/cat"
    config.data.holdout = 0.01  # TFDS has only a training split
    config.train.num_steps = 1_800_000
    return config
