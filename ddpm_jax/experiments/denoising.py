"""What every model that denoises can do, and a function as such a model.

A model that a config names is in `models`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.chain_flow import flow_of_networks
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.flow import Flow
from ddpm_jax.diffusion.interpolants import Method
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.codec import Codec, PixelCodec
from ddpm_jax.models.condition import Condition
from ddpm_jax.training.conditioning import Conditioning


class Weights(NamedTuple):
    """The arrays that a model computes with; a pytree."""

    params: Any  # of its network
    frozen: Any = ()  # of its codec: () over pixels, first stage and scale over latents
    text: Any = ()  # of an encoder of texts that the network was not trained with


class OnChain:
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


class Denoises(OnChain):
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
class NetworkModel(Denoises):
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
