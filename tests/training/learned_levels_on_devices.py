"""A program for test_learned_levels_runs.py: trains levels and a network on the devices it finds.

`learned_levels_on_devices.py WORKDIR STEPS OUT`: trains to so many steps, and writes the
parameters of the last.
"""

import pathlib
import sys

import jax
import numpy as np

import ddpm_jax
from ddpm_jax.experiments.config import load_config

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "vdm_digits.py"


def main(workdir, num_steps, out):
    config = load_config(CONFIG)
    config.model.ch_mult = (1,)  # no down-sampling
    config.model.attn_resolutions = ()
    config.model.mid_block = "none"
    config.train.num_steps = int(num_steps)
    config.train.batch_size = 8
    config.train.num_samples = 2
    config.train.sample_steps = 2
    config.optimizer.clip_scope = "average"
    config.optimizer.warmup_steps = 0
    state = ddpm_jax.train(config, workdir).state
    leaves = jax.tree_util.tree_leaves_with_path((state.params, state.ema_params))
    np.savez(out, **{jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


if __name__ == "__main__":
    main(*sys.argv[1:])
