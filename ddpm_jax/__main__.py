"""Start a command by its name: `ddpm-jax train`, or `python -m ddpm_jax train`."""

import importlib
import sys
from collections.abc import Sequence

from ddpm_jax import __version__, host_memory
from ddpm_jax.distributed import interrupt
from ddpm_jax.errors import say, suggest

# name -> what it does; the module of `ddpm_jax.cli` is called the same, with underscores
COMMANDS = {
    "train": "train the model of a config, or resume its run",
    "sample": "make images by a trained model",
    "edit": "make images from a picture: image-to-image, inpainting",
    "interpolate": "go from one picture, or one seed, to another",
    "reconstruct": "turn a picture into its own noise, and back",
    "evaluate": "measure a trained model: distances, likelihoods, reconstructions",
    "compare": "say why two results of evaluate differ",
    "distill": "make a model of few steps of a trained one",
    "samplers": "compare the samplers' errors, in a table and a plot",
    "ema": "make other averages of a run's weights",
    "plot": "draw the records of training runs together",
    "encode": "encode pictures to the latents of a first stage",
    "decode": "decode latents of a first stage to pictures",
    "draw": "draw the pictures of a first stage at any checkpoint",
    "export": "write a model for other programs: diffusers, OpenAI's, LoRA, safetensors",
    "import": "turn a network of another project into a run, with a certificate",
    "verify": "repeat the checks of an imported run's certificate",
    "import-first-stage": "turn an AutoencoderKL's weights into a run",
}
TRAINING = {"train", "distill"}  # which call one large program again and again
MODULES = {"import": "import_model"}  # except this word of Python's
USAGE = 2  # exit code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default this process's; return the exit code.

    `argv` does not include the program's name.
    """
    if argv is None:
        argv = sys.argv[1:]
        interrupt.own_process()
        if TRAINING & set(argv[:1]):
            host_memory.keep_freed()
    if not argv:
        return _refuse(f"Name a command, one of {', '.join(COMMANDS)}.")
    name, *rest = argv
    if name in ("--help", "-h", "help"):
        say(_help())
        return 0
    if name == "--version":
        say(__version__)
        return 0
    if name not in COMMANDS:
        return _refuse(f"There is no command {name!r}.{suggest(name, COMMANDS)}")
    # JAX takes a second to import, and the list of commands does not need it
    with interrupt.leaving():
        from ddpm_jax.cli import command

        module = importlib.import_module(f"ddpm_jax.cli.{module_of(name)}")
    return command.run(getattr(module, "command", module.main), rest)


def module_of(name: str) -> str:
    """Return the name of the module of a command."""
    return MODULES.get(name, name.replace("-", "_"))


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        [
            "ddpm-jax COMMAND ...: denoising diffusion in JAX.",
            "",
            *lines,
            "",
            "`ddpm-jax COMMAND --help` lists a command's flags; "
            "`ddpm-jax --version` says which this is.",
        ]
    )


def _refuse(sentence: str) -> int:
    say(f"error: {sentence} `ddpm-jax --help` lists the commands.", file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
