"""`ddpm-jax import-first-stage ...`: a first stage of another project's weights.

    ddpm-jax import-first-stage --config configs/vae_imagenet256.py \\
        --weights diffusion_pytorch_model.safetensors --out runs/sd_vae

Reads the weights of an `AutoencoderKL` or a `VQModel` as diffusers lays them out, safetensors, NPZ
or Flax's msgpack, into the network of the config, and writes them as a run of step 0. Everything
takes it for one: evaluate.py, encode and decode, and --config.first_stage.ckpt of a model over its
latents. It holds these weights only, so it cannot be trained on.
"""

import dataclasses
import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.shared_flags import prepare
from ddpm_jax.errors import UsageError, say
from ddpm_jax.experiments.config import load_config, override
from ddpm_jax.experiments.fields import FIELDS
from ddpm_jax.files import as_path
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.importing import import_first_stage


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """What to import"""

    config: str | None = setting(
        None,
        "Config of the first stage, a name or a file; --config.FIELD=VALUE overrides a field.",
        path=True,
    )
    weights: str | None = setting(
        None,
        "Its weights as diffusers names them: safetensors, NPZ, or Flax's .msgpack.",
        path=True,
    )
    out: str | None = setting(None, "Directory to write the run to.", path=True, metavar="DIR")


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, Command, fields=FIELDS).parse(argv)
    for name in ("config", "weights", "out"):
        if not getattr(flags, name):
            raise UsageError(
                f"--{name} is missing: this command needs --config, --weights and --out."
            )
    prepare(flags)
    config, out = override(load_config(flags.config), flags.fields), as_path(flags.out)
    import_first_stage(config, flags.weights, out, name=f"--config {flags.config}")
    say(f"a first stage of {flags.weights}\n  --config.first_stage.ckpt={out}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
