"""A diffusion model of which low-rank updates are trained, and the rest is frozen."""

import dataclasses
from typing import Any, NamedTuple

import jax

from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.models.layers import shape_keys
from ddpm_jax.models.lora import init_lora, merge_lora
from ddpm_jax.randomness import base_key


class WithBase(NamedTuple):
    """What a training state and a checkpoint keep unchanged where updates are trained."""

    base: Any  # parameters of the network, before the updates
    frozen: Any  # what the model without updates keeps


@dataclasses.dataclass(frozen=True)
class LoraModel(DiffusionModel):
    """Its state's parameters are the updates alone; its `Weights` have them merged."""

    @property
    def scale(self) -> float:
        """Return alpha / rank."""
        c = self.config.lora
        return 1.0 if c.alpha is None else c.alpha / c.rank

    def network_shapes(self) -> Any:
        """Return the tree of the network's parameters as shapes."""
        return jax.eval_shape(super().init_params, shape_keys(base_key(0)))

    def params_shapes(self) -> Any:
        """Return the tree of the updates as shapes."""
        return jax.eval_shape(self.init_params, base_key(0))

    def init_params(self, key: jax.Array) -> Any:
        """Draw the initial updates, float32."""
        c = self.config.lora
        return init_lora(key, self.network_shapes(), rank=c.rank, targets=c.targets)

    def frozen_shapes(self) -> Any:
        """Return the frozen part of the state as shapes."""
        return WithBase(self.network_shapes(), super().frozen_shapes())

    def weights(self, params: Any, frozen: Any) -> Weights:
        """Return the weights from the updates, or () for none, and the frozen part of a state."""
        merged = merge_lora(frozen.base, params, self.scale)
        return super().weights(merged, frozen.frozen)

    def frozen_part(self, weights: Weights) -> Any:
        """Return what a state keeps unchanged, with these weights as the base."""
        return WithBase(weights.params, super().frozen_part(weights))
