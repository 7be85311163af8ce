"""DDPM on LSUN Bedroom at 256x256.

Paper:    Ho et al. 2020, Denoising Diffusion Probabilistic Models, appendix B.
Command:  python train.py --config configs/ddpm_lsun_bedroom.py --config.data.data_dir=DIR --workdir
          runs/bedroom
Hardware: TPU v3-8, 2.2 steps/s (the paper), so 303 h for 2,400,000 steps. 113.7 M parameters; on a
          device with less memory raise optimizer.accumulate_steps or set model.remat.
Expected: FID 6.36 with 50,000 EMA samples (the paper, table 3). No mirroring, as in the paper.
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("ddpm_lsun_church.py"))
    config.data.name = "lsun/bedroom"
    config.data.flip = False
    config.train.num_steps = 2_400_000
    return config
