"""`ddpm-jax export RUN --to diffusers --out DIR`: a model written for other programs.

    ddpm-jax export runs/mine --to diffusers --out mine_sd    for StableDiffusionPipeline
    ddpm-jax export runs/cifar10 --to diffusers --out cifar10    for DDPMPipeline
    ddpm-jax export runs/mine --to lora --out mine.safetensors    only what LoRA trained
    ddpm-jax export PATH --lora mine.safetensors --to diffusers --out merged
    ddpm-jax export runs/cifar10 --to openai --out model.pt    as improved-diffusion has it
    ddpm-jax export runs/cifar10 --to original --out ho.safetensors    by Ho et al.'s variables
    ddpm-jax export runs/cifar10 --to safetensors --out mine.safetensors    by our own names
    ddpm-jax export runs/cifar10 --to diffusers --out cifar10 --push ORG/NAME    also to the hub

--ckpt RUN is the same as RUN. A run that trained low-rank updates is written to a directory of
diffusers with the updates merged. What the other project does not have is refused by its name, and
nothing that exists is overwritten. --push adds what was written to a model on the Hugging Face hub,
with a model card, as one commit; it needs the extra `hub` and a login.
"""

import dataclasses
import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.shared_flags import (
    Checkpoint,
    LowRank,
    check_names_a_run,
    prepare,
    reading,
    updating,
)
from ddpm_jax.errors import UsageError, say
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.interop.diffusers_writing import check_new
from ddpm_jax.interop.hub import check_push
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.exporting import LICENSE, export_lora, new_file
from ddpm_jax.tasks.network_exporting import ENDINGS, WRITERS, write_for_diffusers, write_network
from ddpm_jax.tasks.publishing import publish

FORMATS = ("diffusers", "lora", *WRITERS)


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """What to write"""

    to: str = setting(
        "diffusers",
        "For whom: a directory of diffusers; or a file of low-rank updates, of our own parameters, "
        "or of OpenAI's or the original code's names.",
        choices=FORMATS,
        metavar="|".join(FORMATS),
        kind="format",
    )
    out: str | None = setting(None, "The new directory or file.", path=True)
    license: str = setting(
        LICENSE, "Of the weights, for the model card: of a directory, or with --push of a file."
    )
    push: str | None = setting(
        None,
        "Model on the Hugging Face hub that it is added to as well, owner/name; made if there is "
        "none.",
        metavar="NAME",
    )
    private: bool = setting(False, "With --push: a model that is made is seen by its owner alone.")

    def __post_init__(self) -> None:
        """Check every field, and that nothing is said of a model or card that is not written."""
        super().__post_init__()
        if self.private and not self.push:
            raise UsageError("private is for push, and there is none: leave it out.")
        if self.license != LICENSE and self.to != "diffusers" and not self.push:
            raise UsageError(
                "license is for the model card, and a file has one only with push: leave it out."
            )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, Checkpoint, LowRank, Command, words=True).parse(argv)
    if len(flags.words) > 1 or (flags.words and flags.ckpt):
        raise UsageError("Name one run or model to export.")
    if flags.words:
        flags.ckpt = flags.words[0]
    check_names_a_run(flags)
    if not flags.out:
        raise UsageError("--out is missing: name what to write.")
    command = flags.make(Command)
    repo = check_push(command.push) if command.push else ""
    prepare(flags)
    builder = ""
    if flags.to == "lora":
        if flags.lora:
            raise UsageError("--lora is merged, and --to lora writes updates alone: leave one out.")
        export_lora(flags.ckpt, flags.out, step=flags.ckpt_step, raw_weights=flags.raw_weights)
    elif flags.to in WRITERS:
        new_file(flags.out, *ENDINGS.get(flags.to, ()))
        trained = load_trained(flags.ckpt, None, **reading(flags), **updating(flags))
        builder = write_network(trained, flags.out, flags.to)
    else:
        check_new(flags.out)
        trained = load_trained(flags.ckpt, **reading(flags), **updating(flags))
        write_for_diffusers(trained, flags.out, license=flags.license)
    say(f"wrote {flags.out}")
    if builder:
        say(f"  for {builder}")
    if repo:
        options = {"license": flags.license, "private": flags.private}
        url = publish(flags.out, repo, flags.to, builder=builder, **options)
        say(f"  pushed: {url}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
