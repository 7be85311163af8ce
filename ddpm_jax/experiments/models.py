"""Models that a config names, without weights: diffusion models, classifiers of noisy images.

The third kind, a first stage, is `first_stages.FirstStageModel`. `building.build` builds them from
a config; a model with weights is a `trained_model.TrainedModel`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.interpolants import Method
from ddpm_jax.diffusion.learned_levels import GAMMA
from ddpm_jax.diffusion.process import Process, make_process
from ddpm_jax.experiments.chains import first_levels, has_learned_levels, learned_chain
from ddpm_jax.experiments.codec import Codec
from ddpm_jax.experiments.denoising import Denoises, OnChain, Weights
from ddpm_jax.experiments.few_steps import own_method
from ddpm_jax.experiments.first_stages import FirstStageModel
from ddpm_jax.models.classifier import Classifier
from ddpm_jax.models.condition import Condition, null_condition
from ddpm_jax.models.dit import DiT
from ddpm_jax.models.layers import shape_keys
from ddpm_jax.models.text_conditioned import TextConditioned
from ddpm_jax.models.text_encoder import TextEncoder
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.models.unet import UNet
from ddpm_jax.randomness import base_key
from ddpm_jax.samplers.guidance import LogProb, class_log_prob
from ddpm_jax.training.conditioning import Conditioning


class FrozenParts(NamedTuple):
    """What a training state and a checkpoint keep unchanged, with a trained encoder of texts."""

    codec: Any  # `Weights.frozen`
    text: Any  # `Weights.text`


@dataclasses.dataclass(frozen=True)
class _NoisyImageModel(OnChain):
    """The common part of a diffusion model and a classifier of its noisy images."""

    config: ConfigDict
    network: UNet | DiT | TextUNet | TextConditioned | Classifier
    chain: Chain
    codec: Codec
    encoder: TextEncoder | None = None  # of texts; None for a model that reads none

    @property
    def conditioning(self) -> Conditioning:
        """Return the conditions of an example besides x_t and t."""
        has_text = self.encoder is not None
        return Conditioning(**self.config.condition.to_dict(), has_text=has_text)

    def apply(self, weights: Weights, *inputs: Any) -> jax.Array:
        """Apply the network without dropout."""
        return self.network.apply({"params": weights.params}, *inputs)

    def _init(self, key: jax.Array | dict[str, jax.Array], *condition: Condition | None) -> Any:
        x, t = jnp.zeros((1, *self.shape)), jnp.zeros((1,))
        return self.network.init(key, x, t, *condition)["params"]

    def params_shapes(self) -> Any:
        """Return the parameter tree as shapes, nothing computed."""
        return jax.eval_shape(self.init_params, shape_keys(base_key(0)))

    def frozen_shapes(self) -> Any:
        """Return the frozen part of the state as shapes: that of the codec, () over pixels."""
        return self.codec.frozen_shapes()

    def weights(self, params: Any, frozen: Any) -> Weights:
        """Return the weights from the parameters and the frozen part of a state."""
        return Weights(params, frozen)

    def frozen_part(self, weights: Weights) -> Any:
        """Return what a state keeps unchanged of weights: the inverse of `weights`."""
        return weights.frozen


class DiffusionModel(_NoisyImageModel, Denoises):
    """A network that denoises, the process that it reverses, and the codec of its images."""

    @functools.cached_property
    def process(self) -> Process:
        """Return the chain and the meaning of the network's output."""
        c = self.config.diffusion
        return make_process(self.chain, c.parameterization, c.variance, sigma_data=c.sigma_data)

    def method_for(self, sampler: str | None = None, steps: int | None = None) -> Method | None:
        """Return that of a model of few steps, or the method of the process.

        Raises:
          UsageError: as `few_steps.own_method`.
        """
        return own_method(self.config, self.chain, sampler=sampler, steps=steps)

    @property
    def has_interval(self) -> bool:
        """Return whether the network predicts the mean velocity between two times."""
        return bool(self.config.mean_flow.evaluations)

    def init_params(self, key: jax.Array | dict[str, jax.Array]) -> Any:
        """Draw the initial parameters, float32; of `layers.shape_keys`, zeros."""
        condition = null_condition(self.network, jnp.zeros((1, *self.shape)))
        if self.learns_encoder:  # which must see tokens
            condition = condition._replace(context=jnp.zeros((1, 1), jnp.int32))
        params = self._init(key, condition)
        if not has_learned_levels(self.config):
            return params
        return {**params, GAMMA: first_levels(self.config)}

    def at_levels_of(self, weights: Weights) -> "DiffusionModel":
        """Return the model with the noise levels that weights have learned; else itself."""
        if not has_learned_levels(self.config):
            return self
        return dataclasses.replace(self, chain=learned_chain(self.config, weights.params[GAMMA]))

    @property
    def learns_encoder(self) -> bool:
        """Return whether the encoder of texts is a part of the network, `TextConditioned`."""
        return isinstance(self.network, TextConditioned)

    def text_params(self, weights: Weights) -> Any:
        """Return the parameters of the encoder of texts."""
        return weights.params["encoder"] if self.learns_encoder else weights.text

    def read(self, weights: Weights, condition: Condition | None) -> Condition | None:
        """Return the condition with its tokens encoded; one without texts is unchanged."""
        context = None if condition is None else condition.context
        if context is None or not jnp.issubdtype(context.dtype, jnp.integer):
            return condition
        features = self.encoder.apply({"params": self.text_params(weights)}, context).context
        return condition._replace(context=features)

    @property
    def has_trained_encoder(self) -> bool:
        """Return whether it reads texts by an encoder that was trained before."""
        return self.encoder is not None and not self.learns_encoder

    def frozen_shapes(self) -> Any:
        """Return the frozen part of the state as shapes: codec, and trained encoder of texts."""
        codec = super().frozen_shapes()
        if not self.has_trained_encoder:
            return codec
        tokens = jnp.zeros((1, 1), jnp.int32)
        return FrozenParts(codec, jax.eval_shape(self.encoder.init, base_key(0), tokens)["params"])

    def weights(self, params: Any, frozen: Any) -> Weights:
        """Return the weights from the parameters and the frozen part of a state."""
        return Weights(params, *frozen) if self.has_trained_encoder else Weights(params, frozen)

    def frozen_part(self, weights: Weights) -> Any:
        """Return what a state keeps unchanged of weights: the inverse of `weights`."""
        codec = weights.frozen
        return FrozenParts(codec, weights.text) if self.has_trained_encoder else codec


class NoisyClassifier(_NoisyImageModel):
    """A classifier of noisy images, on the chain of the model that it guides."""

    def init_params(self, key: jax.Array | dict[str, jax.Array]) -> Any:
        """Draw the initial parameters, float32; of `layers.shape_keys`, zeros."""
        return self._init(key)

    def class_log_prob(self, weights: Weights) -> LogProb:
        """Return log p(y|x_t) on any schedule, the whole chain or a respaced one."""
        return class_log_prob(functools.partial(self.apply, weights))


Model = DiffusionModel | NoisyClassifier | FirstStageModel
