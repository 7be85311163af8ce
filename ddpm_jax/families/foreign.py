"""A network in the files of another project, as a family of checkpoints describes it.

`interop.containers.open_container` says what is in a file or a directory, whoever wrote it. A
module of this package recognises the files of its family from names and shapes, and describes the
network as fields of a config of ours; `recognition.recognise` asks them in turn.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddpm_jax.interop.containers import Container

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user says of files that do not say it themselves."""

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of a config, dotted
    preset: str | None = None  # a released model, whose settings are known


@dataclasses.dataclass(frozen=True)
class Assumption:
    """The value of a field that the files do not tell."""

    value: Any
    why: str  # completes "model.num_heads = 4: ..."


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A network in the files of another project; its weights are not read yet."""

    family: str  # "improved-diffusion", for messages and records
    fields: Mapping[str, Any]  # of a config of ours, by dotted name: what the files say
    assumed: Mapping[str, Assumption]  # likewise, what they do not say; what a user says is said
    weights: Mapping[str, Tensors]  # "raw", "ema": tensors by the names of the family; one or both
    # (tensors, network of the config) -> parameters, nested, float32; raises UsageError with the
    # first tensor that is missing, left over or of another shape
    read: Callable[[Tensors, Any], dict[str, Any]]
    # (parameters, network) -> tensors by the names of the family, float32: the inverse of `read`
    write: Callable[[Mapping[str, Any], Any], dict[str, np.ndarray]]
    unread: tuple[str, ...] = ()  # what else the files hold, in words: "the state of Adam"
    released_as: str = ""  # name of the released model that it has the architecture of; "": unknown
    config: str = ""  # path of the file that says which network it is; "": names and shapes do
    published: str = ""  # how many parameters that has, as published: "554M"; "": not known


Recognise = Callable[[Container, Request], "Foreign | None"]
