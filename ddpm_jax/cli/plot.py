"""`ddpm-jax plot RUN ...`: records of training runs, as one PNG and a table.

    ddpm-jax plot runs/digits runs/digits_cond
    ddpm-jax plot runs/* --metrics loss,loss_q1,grad_norm --x seconds --out curves.png

A RUN is the --workdir of a train.py. Its name in the legend is followed by the config fields that
differ between the runs where they are one or two. The table has all, and the mean of each metric
over the last tenth of the run's records.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.errors import UsageError, say
from ddpm_jax.files import as_path
from ddpm_jax.settings import Settings, setting
from ddpm_jax.training_runs.run_curves import Curves, draw_runs, format_runs, load_runs


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """Where the picture goes"""

    out: str = setting(
        "plot.png",
        "The picture; one that is there is replaced.",
        path=True,
        metavar="FILE.png",
    )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, Curves, Command, computes=False, words=True).parse(argv)
    curves, out = flags.make(Curves), _picture(flags.out)
    runs = load_runs(flags.words)
    draw_runs(runs, curves, out)
    say(format_runs(runs, curves.metrics))
    say(f"wrote {out}")
    return 0


def _picture(text: str) -> pathlib.Path:
    out = as_path(text)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UsageError(f"--out {text} is not the name of a PNG: choose one that ends in .png.")
    return out


if __name__ == "__main__":
    sys.exit(run(main))
