"""`ddpm-jax compare A.json B.json`: which settings of two results differ, and what each explains.

    ddpm-jax compare runs/a/evaluation/fid_....json runs/b/evaluation/fid_....json
    ddpm-jax compare a.json b.json --norecompute

Both are records that `evaluate` has written, of one metric. Each setting that differs is changed in
the first alone and the number computed again, from the images, the reference and the weights that
the records name, as far as these are still there; `not explained by these effects` is what is left.
Samples of two models, samplers or seeds differ as a whole: their settings have one effect together.
"""

import dataclasses
import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.shared_flags import prepare
from ddpm_jax.errors import UsageError, say
from ddpm_jax.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """How to compare"""

    recompute: bool = setting(True, "Compute the effects of settings, the default.")
    feature_cache: str | None = setting(
        None, 'Where features are kept, as in evaluate; "none" for nowhere.', metavar="DIR"
    )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, Command, words=True).parse(argv)
    if len(flags.words) != 2:
        count = len(flags.words)
        named = {0: "No file is", 1: "One file is"}.get(count, f"{count} files are")
        raise UsageError(f"{named} named: give two records of evaluate, A.json B.json.")
    prepare(flags)
    from ddpm_jax.measuring.record_comparison import compare_records

    first, second = flags.words
    settings = {"recompute": flags.recompute, "feature_cache": flags.feature_cache}
    say(compare_records(first, second, **settings).text)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
