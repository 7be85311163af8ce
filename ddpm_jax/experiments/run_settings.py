"""Settings that a run saves with its weights: config, dataset, first stage, beginning.

They are in `config.json` and in every checkpoint: the fields of the config, and three more entries.
"""

import pathlib
from typing import Any

from ddpm_jax.data.dataset_info import dataset_info
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.codec import FrozenFirstStage
from ddpm_jax.experiments.distill_fields import UNREAD
from ddpm_jax.experiments.models import Model
from ddpm_jax.files import read_file, reporting
from ddpm_jax.schema import LARGEST, SHA256, Malformed, Table, Text, Whole, check, parse

FIRST_STAGE = "frozen_first_stage"  # of a run over latents
INIT_FROM = "begun_from"  # of a run that began with another's weights: which these were
DATASET = "dataset"  # what is known of the data and is in no config, such as names of classes
SETTINGS = Table(
    optional={
        FIRST_STAGE: Table({"sha256": SHA256, "config": Table()}),
        INIT_FROM: Table({"source": Text(), "step": Whole(), "weights": Text(), "sha256": SHA256}),
    }
)


def run_settings(model: Model, source: Source | None = None) -> dict[str, Any]:
    """Return the settings of a run of `model` on `source`: config, first stage, dataset."""
    settings = configs.to_dict(model.config)
    if source is not None and dataset_info(source).contents:
        known = dataset_info(source)
        settings[DATASET] = {"class_names": list(known.class_names), "contents": known.contents}
    first_stage = frozen_first_stage(model)
    if first_stage is None:
        return settings
    config = configs.to_dict(first_stage.model.config)
    return settings | {FIRST_STAGE: {"sha256": first_stage.sha256, "config": config}}


def frozen_first_stage(model: Model) -> FrozenFirstStage | None:
    """Return the first stage whose latents a model diffuses; None over pixels."""
    return model.codec.first_stage if hasattr(model, "codec") else None


def read_settings(path: pathlib.Path) -> dict[str, Any] | None:
    """Read a run's config.json; None if there is no such file.

    Raises:
      FailureError: it is damaged, or cannot be read.
    """
    with reporting(path, "read"):
        data = read_file(path, largest=LARGEST + 1) if path.exists() else None
    try:
        return None if data is None else parse(data, SETTINGS)
    except Malformed as error:
        raise FailureError(
            f"{path} is damaged ({error}): move it away to go on without it."
        ) from error


def model_from_settings(settings: dict[str, Any], *, source: str) -> Model:
    """Build the model whose `run_settings` were saved; `source` names their origin.

    Raises:
      UsageError: they are not a config of this version.
    """
    check_settings(settings, source=source)
    config = configs.from_dict(config_in(settings), source=source)
    return build(config, first_stage_in(settings, source=source))


def check_settings(settings: dict[str, Any], *, source: str) -> None:
    """Refuse settings whose entries besides the config are not as `run_settings` makes them.

    Raises:
      UsageError: they are not.
    """
    try:
        check(settings, SETTINGS)
    except Malformed as error:
        raise UsageError(f"In {source}, {error}.") from error


def config_in(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the config in a run's settings.

    Older distilled runs have fields of their teacher's that nothing read; these are left out.
    """
    others = (FIRST_STAGE, DATASET, INIT_FROM)
    config = {name: value for name, value in settings.items() if name not in others}
    distill, diffusion = config.get("distill"), config.get("diffusion")
    if not (isinstance(distill, dict) and isinstance(diffusion, dict)):
        return config
    if not distill.get("evaluations"):
        return config
    return config | {"diffusion": {k: v for k, v in diffusion.items() if k not in UNREAD}}


def first_stage_in(settings: dict[str, Any], *, source: str) -> FrozenFirstStage | None:
    """Build the first stage in a run's settings, without weights; None if there is none."""
    if FIRST_STAGE not in settings:
        return None
    saved = settings[FIRST_STAGE]
    config = configs.from_dict(saved["config"], source=f"{source}, of its first stage")
    return FrozenFirstStage(build(config), saved["sha256"])


def contents_in(settings: dict[str, Any]) -> str:
    """Return what identifies the run's data; "" in settings from before it was kept."""
    contents = _dataset_in(settings).get("contents")
    return contents if isinstance(contents, str) else ""


def class_names_in(settings: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the run's classes; () in settings from before they were kept."""
    names = _dataset_in(settings).get("class_names")
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if known else ()


def _dataset_in(settings: dict[str, Any]) -> dict[str, Any]:
    known = settings.get(DATASET)
    return known if isinstance(known, dict) else {}
