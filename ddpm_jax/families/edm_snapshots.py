"""Snapshots of EDM (NVlabs/edm, edm2): recognised, and refused by what ours lack.

Their networks, NCSN++ and DDPM++ (`SongUNet`), ADM (`DhariwalUNet`) and that of EDM2 (`UNet`), are
within a preconditioner, which scales their inputs and outputs by the noise level σ and is not among
the processes here.
"""

import re
from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import UsageError
from ddpm_jax.families.foreign import Foreign, Request
from ddpm_jax.interop.containers import Container
from ddpm_jax.schema import format_value

FAMILY = "EDM"
NETWORKS = ("SongUNet", "DhariwalUNet", "UNet")  # classes of the networks
OPTIONS = ("embedding_type", "encoder_type", "decoder_type", "resample_filter")  # of a SongUNet
# a block of their encoders, "enc.32x32_conv": what tells a state dict without its classes
_BLOCK = re.compile(r"(?:.+\.)?enc\.\d+x\d+_conv\.weight")


def recognise(container: Container, request: Request) -> Foreign | None:
    """Refuse a network of EDM; None if the files are another's.

    Args:
      container: a snapshot, whose facts have the classes, or a state dict.
      request: not read.

    Raises:
      UsageError: it is one.
    """
    facts = container.facts
    for key, name in facts.items():
        start = key.removesuffix("_class_name")
        for network in (f"{start}model.", f"{start}unet."):
            if start != key and facts.get(f"{network}_class_name") in NETWORKS:
                raise UsageError(
                    f"{container.path} has {_described(facts, network)} within {name}: that scales "
                    "inputs and outputs by the noise level, which no process here does, so it "
                    "cannot be read."
                )
    for tensors in container.groups.values():
        if block := next(filter(_BLOCK.fullmatch, tensors), None):
            raise UsageError(
                f"{container.path} has {block}, a block of EDM's networks: these are within a "
                "preconditioner, which no process here has, so they cannot be read."
            )
    return None


def _described(facts: Mapping[str, Any], network: str) -> str:
    """Return class and options of the network whose facts begin so."""
    options = ", ".join(
        f"{option} {format_value(facts[key])}"
        for option in OPTIONS
        if (key := f"{network}_init_kwargs.{option}") in facts
    )
    return f"a {facts[f'{network}_class_name']}{f' of {options}' if options else ''}"
