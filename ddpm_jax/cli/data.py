"""The data section of a config -> a source."""

from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.data import sources
from ddpm_jax.errors import UsageError


def load_split(data: ConfigDict, split: str, *, data_dir: str | None = None, report: Any = None) -> sources.Source:
    """Opens a split of the config's dataset, at `data_dir` where given. Errors, and `report`: see `sources.load`."""
    return sources.load(
        name=data.name,
        split=split,
        data_dir=data.data_dir if data_dir is None else data_dir,
        image_size=data.image_size,
        channels=data.channels,
        holdout=data.holdout,
        cache=data.cache,
        unreadable=data.unreadable,
        small=data.small,
        layout=data.layout,
        report=report,
    )


def check_classes(source: sources.Source, config: ConfigDict, *, split: str) -> None:
    """Refuses a split whose labels are not those that the config's network is told.

    Raises:
      UsageError: it has no labels, or another number of classes.
    """
    wanted, found = config.condition.num_classes, source.num_classes
    if wanted and found != wanted:
        has = f"has {found} classes" if found else "has no labels"
        remedy = f"{found}" if found else "0"
        raise UsageError(
            f"Split {split!r} of dataset {config.data.name!r} {has}, but condition.num_classes is {wanted}: "
            f"train with condition.num_classes={remedy}, or choose data with {wanted} classes."
        )
