"""The data that a config names, and whether a model was trained on it."""

import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.data import sources
from ddpm_jax.data.data_dir import check_outside
from ddpm_jax.data.dataset_info import abbreviated, dataset_info
from ddpm_jax.distributed import hosts
from ddpm_jax.errors import UsageError, say
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.files import as_path


def load_split(
    data: ConfigDict,
    split: str,
    *,
    data_dir: str | None = None,
    captions: str | None = None,
    report: Any = None,
) -> sources.Source:
    """Open a split of the config's dataset; errors and `report` are those of `sources.load`.

    `data_dir` and `captions` replace the config's.
    """
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
        captions=data.captions if captions is None else captions,
        report=report,
    )


def check_data(data: ConfigDict) -> None:
    """Refuse data that cannot be there on any machine, where a run is made that reads none.

    Raises:
      UsageError: an unknown dataset, or a split that it cannot have.
    """
    sources.check_name(data.name, (data.train_split, data.test_split), data.data_dir)


def check_places(data: ConfigDict, *, data_dir: str | None = None, **places: Any) -> None:
    """Refuse to write into a folder of pictures.

    Args:
      data: of the config.
      data_dir: in place of the config's.
      places: flag -> the directory that it names, None where it is not given.

    Raises:
      UsageError: one of these lies in the folder.
    """
    folders = {data.data_dir, data_dir} - {None, ""}
    if data.name == "folder":
        for flag, place in places.items():
            for folder in folders if place else ():
                check_outside(folder, as_path(place), flag=f"--{flag}")


def load_evaluated(
    trained: TrainedModel, split: str, *, data_dir: str | None, captions: str | None = None
) -> tuple[sources.Source, dict[str, str]]:
    """Open a split that a model is to be evaluated on; arguments are those of `load_split`.

    Returns:
      The split, and what the record of a result says where it belongs to other data than those that
      the model was trained on: {"trained_on": those}. A line on standard error says the same.

    Raises:
      UsageError: see `sources.load` and `check_classes`.
    """
    config = trained.model.config
    source = load_split(config.data, split, data_dir=data_dir, captions=captions)
    check_classes(source, config, split=split, class_names=trained.class_names)
    ours, theirs = dataset_info(source).contents, trained.contents
    if not ours or not theirs or ours == theirs:
        return source, {}
    if hosts.is_primary():
        say(
            f"warning: the model was trained on other data ({theirs}) than those it is evaluated "
            f"on ({ours}); the record says so.",
            file=sys.stderr,
        )
    return source, {"trained_on": theirs}


def check_classes(
    source: sources.Source, config: ConfigDict, *, split: str, class_names: Sequence[str] = ()
) -> None:
    """Refuse a split whose labels are not those of the config's network.

    Args:
      class_names: those that the network was trained with, where they are known.

    Raises:
      UsageError: it has no labels, another number of classes, or as many others.
    """
    wanted, found = config.condition.num_classes, source.num_classes
    if wanted and found != wanted:
        has = f"has {found} classes" if found else "has no labels"
        remedy = f"{found}" if found else "0"
        raise UsageError(
            f"Split {split!r} of dataset {config.data.name!r} {has}, but condition.num_classes is "
            f"{wanted}: train with condition.num_classes={remedy}, or choose data with {wanted} "
            "classes."
        )
    names = dataset_info(source).class_names
    if wanted and class_names and names != tuple(class_names):
        raise UsageError(
            f"Split {split!r} of dataset {config.data.name!r} has the classes "
            f"{abbreviated(names)}, but the model was trained with "
            f"{abbreviated(class_names)}: choose data with the same classes."
        )
