"""Which family a file or directory of another project belongs to."""

import os
from collections.abc import Iterable
from typing import NamedTuple

from ddpm_jax.errors import UsageError
from ddpm_jax.families.foreign import Foreign, Recognise, Request
from ddpm_jax.interop.containers import Container, open_container


class Recognised(NamedTuple):
    """A network in files of another project, opened and not read."""

    container: Container
    foreign: Foreign
    request: Request


def recognise(
    path: str | os.PathLike, request: Request, *, variant: str | None = None
) -> Recognised:
    """Open the files of another project and say which network they hold.

    Only names, shapes and configs are read.

    Args:
      path: a file, a directory, or the prefix of a TensorFlow checkpoint.
      request: what the files do not say.
      variant: of the weights in a directory, "fp16" say.

    Raises:
      UsageError: it cannot be opened, is of no family here, or holds what our networks cannot
        represent exactly.
      FailureError: it cannot be read.
    """
    return recognise_container(open_container(path, variant=variant), request)


def recognise_container(container: Container, request: Request) -> Recognised:
    """Say which network is in files that are open; see `recognise`.

    Raises:
      UsageError: as `recognise`.
    """
    families = _families()
    for recognise_family in families.values():
        found = recognise_family(container, request)
        if found is not None:
            return Recognised(container, found, request)
    raise UsageError(
        f"{container.path} is {container.kind}, but its tensors ({_some(container)}) are of no "
        f"family that is known here: {', '.join(families)}."
    )


def _families() -> dict[str, Recognise]:
    """Return how to recognise each family, by what its files are of, in words."""
    from ddpm_jax.families import (  # which most commands never need
        ddpm_ports,
        ddpm_tensorflow,
        denoising_diffusion_pytorch,
        diffusers_unet2d,
        dit_checkpoints,
        edm_snapshots,
        openai_classifier,
        openai_unet,
    )

    modules = (
        ddpm_tensorflow,
        ddpm_ports,
        diffusers_unet2d,
        dit_checkpoints,
        edm_snapshots,
        denoising_diffusion_pytorch,
        openai_unet,
        openai_classifier,
    )
    return {module.FAMILY: module.recognise for module in modules}


def _some(container: Container) -> str:
    names: Iterable[str] = (
        f"{group}.{name}" if group else name
        for group, tensors in container.groups.items()
        for name in tensors
    )
    shown = sorted(names)[:3]
    return ", ".join(name[:80] for name in shown) or "none"
