"""`python -m ddpm_jax.cli.import_first_stage --config FILE --weights FILE --out DIR`: a first stage
from elsewhere.

    python -m ddpm_jax.cli.import_first_stage --config configs/vae_imagenet256.py \\
        --weights diffusion_pytorch_model.safetensors --out runs/sd_vae

Reads the weights of an `AutoencoderKL` or a `VQModel` as diffusers lays them out, safetensors or
NPZ, into the network of the config, and writes them as a run of step 0. Everything takes it for
one: evaluate.py, encode and decode, and --config.first_stage.ckpt of a model over its latents. It
holds these weights only, so it cannot be trained on.
"""

import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ddpm_jax.checkpoints.reader import saved_steps
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.cli.command import Parser, prepare_jax, run
from ddpm_jax.errors import UsageError, say
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.owners import OBJECTIVES
from ddpm_jax.experiments.run_settings import run_settings
from ddpm_jax.files import as_path, check_place
from ddpm_jax.interop.autoencoder_kl import autoencoder_params_from_diffusers
from ddpm_jax.interop.tensor_files import read_tensors
from ddpm_jax.locks import hold

_HOW = "give the safetensors file of the autoencoder, as diffusers saves it, or its tensors in an NPZ file"


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__)
    parser.path(
        "config",
        None,
        "Config of the first stage; --config.FIELD=VALUE overrides a field.",
        metavar="FILE",
    )
    parser.path(
        "weights", None, "Its weights as diffusers names them: safetensors, or NPZ.", metavar="FILE"
    )
    parser.path("out", None, "Directory to write the run to.", metavar="DIR")
    overrides, rest = configs.split_overrides(argv)
    flags = parser.parse(rest)
    for name in ("config", "weights", "out"):
        if not getattr(flags, name):
            raise UsageError(
                f"--{name} is missing: this command needs --config, --weights and --out."
            )
    prepare_jax(flags)
    config = configs.override(configs.load_config(flags.config), overrides)
    if config.objective != "first_stage":
        what = OBJECTIVES[config.objective]
        raise UsageError(
            f"--config {flags.config} is that of {what}, but the weights are a first stage's."
        )
    model, out = build(config), as_path(flags.out)
    check_place(out, flag="--out", writing=True)
    _check_new(out)
    tensors = read_tensors(flags.weights, what="weights of the first stage", how=_HOW)
    params = autoencoder_params_from_diffusers(tensors, model.network)
    with hold(out, "importing a first stage into it"):
        _check_new(out)
        checkpointer = Checkpointer(out, keep_last=1, keep_every=1)
        checkpointer.save(
            0, {"ema_params": jax.tree.map(jnp.asarray, params)}, {}, run_settings(model)
        )
        checkpointer.close()
    say(f"a first stage of {flags.weights}\n  --config.first_stage.ckpt={out}")
    return 0


def _check_new(out: pathlib.Path) -> None:
    if saved_steps(out):
        raise UsageError(f"--out {out} holds a run already: name another directory.")


if __name__ == "__main__":
    sys.exit(run(main))
