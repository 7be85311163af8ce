"""The data section of a config -> a source."""

from ml_collections import ConfigDict

from ddpm_jax.data import sources


def load_split(data: ConfigDict, split: str, *, data_dir: str | None = None) -> sources.Source:
    """Opens a split of the config's dataset, at `data_dir` where given. Errors: see `sources.load`."""
    return sources.load(
        name=data.name,
        split=split,
        data_dir=data.data_dir if data_dir is None else data_dir,
        image_size=data.image_size,
        channels=data.channels,
        holdout=data.holdout,
        cache=data.cache,
        unreadable=data.unreadable,
    )
