"""How the files of other projects are read, where they leave a choice; updates merged into them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import UsageError
from ddpm_jax.settings import Settings, setting


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


@dataclasses.dataclass(frozen=True)
class LowRank(Settings):
    """Updates of its weights"""

    lora: str | None = setting(
        None,
        "Low-rank updates (LoRA) of a model that reads texts, which are merged into its U-Net and "
        "text encoder: a file of diffusers, PEFT or kohya's scripts.",
        path=True,
        metavar="FILE",
    )
    lora_scale: float = setting(1.0, "Further factor of these updates.", lower=0, upper=100)

    def __post_init__(self) -> None:
        """Check every field, and that nothing is scaled that is not there."""
        super().__post_init__()
        if self.lora_scale != 1 and not self.lora:
            raise UsageError(f"lora_scale is {self.lora_scale:g}, and there is no lora.")
