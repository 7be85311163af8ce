"""`ddpm-jax ema --ckpt DIR`: further averages of a run's weights.

    ddpm-jax ema --ckpt runs/digits                                           what there is
    ddpm-jax ema --ckpt runs/digits --sigma_rel 0.05,0.10,0.15  of these widths
    ddpm-jax ema --ckpt runs/digits --average decay_0.999                     kept in training

A relative width is the standard deviation of the time that weights are averaged over, in units of
the run so far: 0.10 looks back over about a tenth of it (Karras et al. 2024). Any width can be made
of the snapshots that training saves with --config.ema.sigma_rels=0.05,0.10 and
--config.ema.snapshot_every=STEPS; the error of the fit says how well. --average takes any of
those of --config.ema.decays and ema.sigma_rels, from the newest checkpoint.

Every average is written to a directory of its own, runs/digits/ema/NAME; sample.py and evaluate.py
take it as --ckpt.
"""

import dataclasses
import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.shared_flags import check_names_a_run, prepare
from ddpm_jax.errors import say
from ddpm_jax.experiments.datasets import check_places
from ddpm_jax.files import as_path, check_place
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.averaging import AVERAGES, Averaging, describe, make_averages, open_run


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """Which run"""

    ckpt: str | None = setting(
        None,
        "Directory of a training run: the --workdir of train.py.",
        path=True,
        metavar="DIR",
    )
    out: str | None = setting(
        None,
        f"Directory for the results; by default {AVERAGES} in the run's.",
        path=True,
        metavar="DIR",
    )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, Command, Averaging).parse(argv)
    check_names_a_run(flags)
    averaging = flags.make(Averaging)
    prepare(flags)
    from ddpm_jax.cli.devices import how_to_call  # which imports JAX

    found = open_run(as_path(flags.ckpt), averaging)
    out = as_path(flags.out or found.workdir / AVERAGES)
    check_place(out, flag="--out", writing=True)
    check_places(found.model.config.data, out=flags.out)
    if not (averaging.average or averaging.sigma_rel):
        say(describe(found))
    for average in make_averages(found, averaging, out):
        say(f"{average.description}\n  {how_to_call('sample')} --ckpt {average.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
