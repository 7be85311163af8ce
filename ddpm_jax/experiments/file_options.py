"""How the files of other projects are read, where they leave a choice."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileOptions:
    """What a user says of the files of another project; runs of this package need none of it."""

    variant: str | None = None  # of the weights in a directory of diffusers, "fp16" say
    # "epsilon" or "v_prediction": what the network in a single file of Stable Diffusion predicts
    prediction_type: str | None = None
    preset: str | None = None  # a released model whose settings the files do not say
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of a config, dotted

    @property
    def given(self) -> list[str]:
        """Return the names of those that are given."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return [name for name, value in values.items() if value]
