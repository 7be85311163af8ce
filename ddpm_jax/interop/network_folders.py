"""Networks in the folders of a directory, as diffusers lays them out.

    model_index.json                 part -> [library, class], if it is a pipeline
    unet/, unet_ema/, ...            config.json and weights (`weight_files` says which)
    scheduler/                       scheduler_config.json

A network alone has its config.json and weights in the directory itself.
"""

import pathlib

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.contents import Contents
from ddpm_jax.interop.diffusers_directory import INDEX, read_json
from ddpm_jax.interop.weight_files import find_weights, variants

_CONFIGS = (INDEX, "config.json", "scheduler_config.json")


def is_network_folder(path: pathlib.Path) -> bool:
    """Return whether a local directory, or a folder in it, has weights of a network."""
    return any(map(variants, _folders(path)))


def without_weights(path: pathlib.Path) -> pathlib.Path | None:
    """Return the first folder of a local directory that has a config and no weights, or None."""
    configured = (x for x in _folders(path) if (x / "config.json").is_file())
    return next((folder for folder in configured if not variants(folder)), None)


def read_network_folder(path: pathlib.Path, variant: str | None = None) -> Contents:
    """Open the weights of all networks in a local directory, and read their configs.

    Args:
      path: as above.
      variant: of the weights, "fp16" say; networks that do not have it are taken without one. None:
        as `weight_files.find_weights`.

    Returns:
      groups by folder, "" for the directory itself; JSON objects by the path of their file in it.

    Raises:
      UsageError: it has no weights of the variant, or a file is damaged.
    """
    found = {folder: variants(folder) for folder in _folders(path)}
    there = set().union(*found.values())
    if variant is not None and variant not in there:
        names = ", ".join(sorted(there - {""})) or "none"
        raise UsageError(f"{path} has no weights of the variant {variant!r}; there is {names}.")
    facts = {
        file.relative_to(path).as_posix(): read_json(file, infinite=True)
        for folder in found
        for file in (folder / name for name in _CONFIGS)
        if file.is_file()
    }
    groups = {
        folder.relative_to(path).as_posix().removeprefix("."): find_weights(
            folder, variant if variant in names else None
        )
        for folder, names in found.items()
        if names
    }
    return Contents(groups, facts)


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
    return [path, *sorted(x for x in path.iterdir() if x.is_dir() and x.name[0] != ".")]
