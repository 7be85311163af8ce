"""`evaluate --images A --reference B`: two sets of images compared without a model."""

from ddpm_jax.cli.arguments import Devices, Flags
from ddpm_jax.cli.shared_flags import Limit, Processes, common_flags, make_interrupt, prepare
from ddpm_jax.distributed import hosts
from ddpm_jax.errors import UsageError, say
from ddpm_jax.files import as_path, check_place
from ddpm_jax.measuring.evaluated_split import stem
from ddpm_jax.measuring.evaluation_settings import Features, ImageComparison
from ddpm_jax.measuring.feature_metrics import as_text, parse_metrics
from ddpm_jax.measuring.image_comparison import compare_sets, short_digest
from ddpm_jax.monitoring.results import write_record
from ddpm_jax.settings import settings_in

OUT = "evaluation"
_OF_SETS = ("images", "reference", "metric", "out")
# flag of a model -> what to give for it
_INSTEAD = {
    "num_samples": "give --num_images, how many of the images to take",
    "batch_size": "give --feature_batch_size",
    "split": "name the split with its dataset, as in --images digits:test",
}
# of a record, what is found and not asked for
_FOUND = ("value", "error", "results", "more")


def compare_given(flags: Flags) -> int:
    """Compare the sets that flags name, write a record for each metric, and return the exit code.

    Raises:
      UsageError: flags of a model; sets that cannot be compared.
      FailureError: a file that cannot be read or written.
    """
    if flags.ckpt:
        raise UsageError(
            "--images are compared without a model, and --ckpt names one: leave one of them out."
        )
    _check_flags(flags)
    if "metric" not in flags.given:
        raise UsageError("--metric is missing: say how to compare, as in --metric fid.")
    names = parse_metrics(flags.metric)
    settings = flags.make(ImageComparison)
    stop = make_interrupt(flags)
    prepare(flags)
    hosts.check_equal(common_flags(flags))
    directory = as_path(flags.out or OUT)
    check_place(directory, flag="--out", writing=True)
    with stop:
        records = compare_sets(flags.images, flags.reference, names, settings)
    for name, record in records.items() if hosts.is_primary() else ():
        say(f"{name} of {flags.images}\n{as_text(record)}")
        path = directory / f"{_name(name, record)}.json"
        write_record(path, record)
        say(path)
    hosts.wait_for_all("the results are written")
    return 0


def _check_flags(flags: Flags) -> None:
    """Refuse flags that are for a model.

    Raises:
      UsageError: one of them is given.
    """
    records = (ImageComparison, Features, Limit, Processes, Devices)
    used = {spec.name for record in records for spec in settings_in(record)} | set(_OF_SETS)
    for name in sorted(flags.given - used):
        instead = _INSTEAD.get(name, "leave it out")
        raise UsageError(
            f"--{name} is for a model, and --images are compared without one: {instead}."
        )


def _name(metric: str, record: dict[str, object]) -> str:
    """Return the name of a record: metric, sets, and a digest of all that was asked for."""
    asked = {name: value for name, value in record.items() if name not in _FOUND}
    digest = short_digest(asked)
    sets = [
        stem(as_path(record[name]["source"]).name)[-40:]
        for name in ("images", "reference")
        if name in record
    ]
    return "_".join([metric, "_vs_".join(sets), digest])
