"""`ddpm-jax import PATH --out DIR`: a network of another project as a run.

    ddpm-jax import google_ddpm-church-256 --out runs/church
    ddpm-jax import model.pt --preset 64x64_diffusion --out runs/guided64
    ddpm-jax import model.pt --config.model.num_heads=4 --out runs/mine
    ddpm-jax import model.ckpt-790000 --weights ema --out runs/cifar10
    ddpm-jax import hub:google/ddpm-church-256@main --out runs/church

The format and the network are recognised from names and shapes; nothing in the files is executed.
What they do not say is assumed, and said: --preset names a released model whose settings are
known, and --config.FIELD=VALUE sets a field of the config. Where there are weights as trained and
their moving average, the run has both, and images are made with the average; --weights takes one of
them alone. Beside the run lies certificate.json, which `ddpm-jax verify DIR` repeats. sample,
evaluate and --config.init_from of train take the directory as that of any run; it holds weights
only, so training cannot be resumed in it.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.shared_flags import prepare
from ddpm_jax.errors import UsageError, say
from ddpm_jax.experiments.config import default_config, flatten, override
from ddpm_jax.experiments.fields import FIELDS
from ddpm_jax.files import as_path
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.model_importing import KINDS, Imported, import_model


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """What to import"""

    preset: str | None = setting(
        None, "Released model that it has the settings of, where the files do not say them."
    )
    weights: str | None = setting(
        None,
        "Take only the moving average of the weights, or only the weights as trained, where the "
        "files have both; by default both.",
        choices=KINDS,
        metavar="|".join(KINDS),
    )
    out: str | None = setting(None, "Directory to write the run to.", path=True, metavar="DIR")


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, Command, fields=FIELDS, words=True).parse(argv)
    if len(flags.words) != 1:
        raise UsageError("Name one file or directory to import, as in ddpm-jax import model.pt.")
    if not flags.out:
        raise UsageError("--out is missing: name the directory to write the run to.")
    prepare(flags)
    config = override(default_config(), flags.fields)
    fields = {name: value for name, value in flatten(config) if name in flags.fields}
    found = import_model(
        flags.words[0],
        as_path(flags.out),
        preset=flags.preset,
        fields=fields,
        weights=flags.weights,
        report=_reporter(),
    )
    for line in describe(found):
        say(line)
    say(f"wrote a run, which sample, evaluate and others take as {_flag(found)} {flags.out}")
    return 0


def _flag(found: Imported) -> str:
    is_classifier = found.trained.model.config.objective == "classifier"
    return "--classifier" if is_classifier else "--ckpt"


def _reporter() -> Callable[[str], None]:
    """Return what says, of each part of the work, how late it begins."""
    start = time.monotonic()

    def report(part: str) -> None:
        say(f"{time.monotonic() - start:4.0f} s  {part}", file=sys.stderr)

    return report


def describe(found: Imported) -> list[str]:
    """Return what was read, in lines."""
    foreign, certificate = found.foreign, found.certificate
    weights = certificate["weights"]
    counts = ", ".join(f"{x['parameters']:,} parameters ({kind})" for kind, x in weights.items())
    released = f", the architecture of {foreign.released_as}" if foreign.released_as else ""
    released += f" ({foreign.published} parameters as published)" if foreign.published else ""
    lines = [f"{foreign.family}{released}: {counts}"]
    if name := certificate["source"].get("hub"):
        lines.append(f"  from {name}")
    if len(weights) > 1:
        lines.append(
            "  weights = ema, assumed: images are made with the average; --weights raw takes the "
            "weights as trained"
        )
    lines += [f"  {name} = {_shown(value)}" for name, value in sorted(foreign.fields.items())]
    lines += [
        f"  {name} = {_shown(assumption.value)}, assumed: {assumption.why}"
        for name, assumption in sorted(foreign.assumed.items())
    ]
    lines += [f"  not read: {what}" for what in foreign.unread]
    digest = next(iter(weights.values()))["sha256"][:12]
    return [*lines, f"every tensor read, and written back bit for bit (SHA-256 {digest})"]


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


if __name__ == "__main__":
    sys.exit(run(main))
