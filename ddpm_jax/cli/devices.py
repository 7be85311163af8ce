"""Preparation of JAX before a command computes: settings, compilation cache, platform."""

import os
import warnings
from collections.abc import Callable

import jax

from ddpm_jax import randomness
from ddpm_jax.cli import compiled_programs
from ddpm_jax.cli.arguments import NOWHERE, Devices
from ddpm_jax.errors import UsageError
from ddpm_jax.files import as_path, check_place, is_remote

_TRANSFER_GUARDS = (
    "jax_transfer_guard",
    "jax_transfer_guard_host_to_device",
    "jax_transfer_guard_device_to_device",
    "jax_transfer_guard_device_to_host",
)


def prepare_jax(devices: Devices, join: Callable[[], None]) -> None:
    """Apply the `devices` settings to JAX, before anything else asks for its devices.

    Args:
      devices: the platform, and where compiled programs are kept.
      join: connects the processes, which comes before the choice of a platform.

    Raises:
      UsageError: what `randomness.check_settings`, `keep_compiled`, `join` and `choose_platform`
        raise, or settings of JAX with which no command can work.
    """
    randomness.check_settings()
    if jax.config.jax_disable_jit:
        raise UsageError(
            "JAX_DISABLE_JIT is set, without which a chain takes minutes an image: unset it; a "
            "function of the package may be run so in Python."
        )
    for guard in _TRANSFER_GUARDS:
        if str(getattr(jax.config, guard)).startswith("disallow"):
            raise UsageError(
                f"{guard.upper()} is {getattr(jax.config, guard)}, and a command copies its data "
                "to the device and its results back: unset it, or set it to log."
            )
    keep_compiled(devices.compilation_cache)
    join()
    choose_platform(devices.platform)


def choose_platform(platform: str | None) -> None:
    """Make JAX use `platform` ("cpu", "gpu", "tpu"), or its own choice for None.

    Raises:
      UsageError: that platform, or the one JAX_PLATFORMS names, is not there.
    """
    before = jax.config.jax_platforms
    if platform:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(platform, platform))
    try:
        jax.devices()
        found = jax.default_backend()
    except (RuntimeError, AssertionError):  # the latter where JAX was built without CUDA
        found = None
    if found is None or (platform and found != platform):
        jax.config.update("jax_platforms", before)
        asked = (
            f"--platform {platform}"
            if platform
            else f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', before)}"
        )
        extra = {"gpu": "cuda", "cuda": "cuda", "tpu": "tpu"}.get(platform or before)
        install = f"install JAX for it with pip install -e '.[{extra}]', or " if extra else ""
        raise UsageError(
            f"{asked} was asked for, but JAX finds no such device here: {install}use --platform "
            "cpu."
        )


def keep_compiled(directory: str | None) -> None:
    """Make JAX keep compiled programs, on disk or in a bucket.

    Args:
      directory: where; None for where JAX_COMPILATION_CACHE_DIR says or else the user's own
        (`compiled_programs.own_directory`), if there is one; `NOWHERE` for not at all.

    Raises:
      UsageError: the directory, for None that of JAX_COMPILATION_CACHE_DIR, cannot be made, or its
        name is not UTF-8, which JAX needs.
    """
    if directory == NOWHERE:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if directory is None:
        if jax.config.jax_compilation_cache_dir is not None:
            _check_cache(jax.config.jax_compilation_cache_dir, "JAX_COMPILATION_CACHE_DIR")
            return
        wanted = jax.config.jax_enable_compilation_cache
        own = compiled_programs.own_directory() if wanted else None
        if own is None:
            return
        compiled_programs.tidy(own)
        # Nobody asked for it: where an entry cannot be read or written, nothing is said.
        for doing in ("reading", "writing"):
            warnings.filterwarnings("ignore", f"Error {doing} persistent compilation cache")
        place = str(own)
    else:
        _check_cache(directory, "--compilation_cache")
        path = as_path(directory)
        check_place(path, flag="--compilation_cache", writing=True)
        place = directory if is_remote(path) else os.path.abspath(directory)
    jax.config.update("jax_compilation_cache_dir", place)
    # By default JAX keeps only what took a second to compile; a start consists of many smaller
    # programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _check_cache(directory: str, name: str) -> None:
    """Refuse a compilation cache in which JAX's first compilation would fail.

    `name` is the flag or variable that names it.
    """
    try:
        directory.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} {directory} is no name in UTF-8, as JAX needs one: rename it."
        ) from error
    try:
        place = as_path(directory)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    if is_remote(place):
        return
    try:
        os.makedirs(place, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{name} {directory} cannot be made: {error.strerror}.") from error


def how_to_call(name: str) -> str:
    """Return the way to call a command: "python sample.py" in a checkout, "ddpm-jax sample"."""
    return f"python {name}.py" if os.path.isfile(f"{name}.py") else f"ddpm-jax {name}"
