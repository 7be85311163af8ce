"""Models that a config names, without weights: diffusion models, classifiers of noisy images.

The third kind, a first stage, is `first_stages.FirstStageModel`. `building.build` builds them from
a config; a model with weights is a `trained_model.TrainedModel`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.chain_flow import flow_of_networks
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.flow import Flow
from ddpm_jax.diffusion.interpolants import Method
from ddpm_jax.diffusion.learned_levels import GAMMA
from ddpm_jax.diffusion.process import Process, make_process
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.chains import first_levels, has_learned_levels, learned_chain
from ddpm_jax.experiments.codec import Codec, PixelCodec
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


class Weights(NamedTuple):
    """The arrays that a model computes with; a pytree."""

    params: Any  # of its network
    frozen: Any = ()  # of its codec: () over pixels, first stage and scale over latents
    text: Any = ()  # of an encoder of texts that the network was not trained with


class FrozenParts(NamedTuple):
    """What a training state and a checkpoint keep unchanged, with a trained encoder of texts."""

    codec: Any  # `Weights.frozen`
    text: Any  # `Weights.text`


class _OnChain:
    """A model of noisy images: `chain` and `codec`."""

    chain: Chain
    codec: Codec

    @functools.cached_property
    def schedule(self) -> Schedule:
        """Return the tables of all T steps of the chain."""
        return self.chain.at()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (H, W, C) of an image."""
        return self.codec.image_shape

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (h, w, c) of what diffuses: an image, or its latents."""
        return self.codec.shape


class _Denoises(_OnChain):
    """A model that denoises: `process`, `codec`, `conditioning` and `apply`."""

    process: Process
    conditioning: Conditioning

    def encode(
        self, weights: Weights, images: jax.Array, noise: jax.Array | None = None
    ) -> jax.Array:
        """Map images uint8 [B, H, W, C] to x_0 [B, h, w, c]: see `LatentCodec.encode`."""
        return self.codec.encode(weights.frozen, images, noise)

    def decode(self, weights: Weights, x: jax.Array, inputs: Any = None) -> jax.Array:
        """Map x_0, or an x_t, [B, h, w, c] to images uint8 [B, H, W, C]; `inputs` is not read."""
        return self.codec.decode(weights.frozen, x)

    def denoiser(
        self, weights: Weights, schedule: Schedule, condition: Condition | None = None
    ) -> Denoiser:
        """Return the denoiser on `schedule`, the whole chain or a respaced one.

        It has no dropout, and x_0 is clipped over pixels. A conditional model needs the condition,
        one row for each image of the denoiser's batches; its context may be tokens, int32 [B, L].
        """
        denoiser = self._denoiser(weights, schedule, clip=self.codec.clipping)
        return denoiser.given(self.read(weights, condition))

    def _denoiser(self, weights: Weights, schedule: Schedule, *, clip: str) -> Denoiser:
        if schedule.timesteps.ndim == 2 and not self.has_interval:
            raise UsageError(
                "The sampler mean_flow asks for the mean velocity between two times, and this "
                "network was not trained to predict it: choose another sampler, euler say."
            )
        network = functools.partial(self.apply, weights)
        return self.process.denoiser(network, schedule, clip=clip)

    @property
    def has_interval(self) -> bool:
        """Return whether the network predicts the mean velocity between two times."""
        return False

    def read(self, weights: Weights, condition: Condition | None) -> Condition | None:
        """Return the condition with its tokens encoded; one without texts is unchanged."""
        return condition

    def conditional_denoiser(self, weights: Weights, schedule: Schedule) -> Denoiser:
        """Return the denoiser before `Denoiser.given`, nothing clipped: guidance comes first."""
        return self._denoiser(weights, schedule, clip="none")

    def make_flow(self, *, start: float) -> Callable[[Weights, Condition | None], Flow]:
        """Return (weights, condition) -> the flow from `start`, without dropout or clipping.

        The condition is as in `denoiser`.

        Raises:
          UsageError: a chain of T steps that ends at alphas_bar = 0.
        """
        flow_of = flow_of_networks(self.process, start=start)

        def flow(weights: Weights, condition: Condition | None = None) -> Flow:
            condition = self.read(weights, condition)
            return flow_of(lambda x_t, time: self.apply(weights, x_t, time, condition))

        return flow

    @property
    def method(self) -> Method | None:
        """Return how samples are made where nothing is said; None: by every sampler's defaults."""
        return self.method_for()

    def method_for(self, sampler: str | None = None, steps: int | None = None) -> Method | None:
        """Return that where a sampler or a number of steps is said: see `few_steps.own_method`."""
        return self.chain.method


@dataclasses.dataclass(frozen=True)
class _NoisyImageModel(_OnChain):
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


class DiffusionModel(_NoisyImageModel, _Denoises):
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


@dataclasses.dataclass(frozen=True)
class NetworkModel(_Denoises):
    """A network that denoises pixels, without a run: a function, and the process it reverses."""

    network: Callable[..., jax.Array]  # (x_t, time), and labels int32 [B] where there are classes
    process: Process
    codec: PixelCodec
    num_classes: int = 0

    @property
    def chain(self) -> Chain:
        """Return the noise levels."""
        return self.process.chain

    @property
    def conditioning(self) -> Conditioning:
        """Return labels, which guidance may drop, if there are classes."""
        return Conditioning(self.num_classes, label_dropout=float(self.num_classes > 0))

    def apply(
        self, weights: Weights, x_t: jax.Array, time: jax.Array, condition: Condition | None = None
    ) -> jax.Array:
        """Call the network; it has its own weights."""
        labels = () if condition is None else (condition.label,)
        return self.network(x_t, time, *labels)


class NoisyClassifier(_NoisyImageModel):
    """A classifier of noisy images, on the chain of the model that it guides."""

    def init_params(self, key: jax.Array | dict[str, jax.Array]) -> Any:
        """Draw the initial parameters, float32; of `layers.shape_keys`, zeros."""
        return self._init(key)

    def class_log_prob(self, weights: Weights) -> LogProb:
        """Return log p(y|x_t) on any schedule, the whole chain or a respaced one."""
        return class_log_prob(functools.partial(self.apply, weights))


Model = DiffusionModel | NoisyClassifier | FirstStageModel
