"""The variational bound over a set of images, at every t or at some of them, on all local devices.

Ho et al. 2020, eq. 5: -log p(x_0) is at most L_T + the sum over t of the terms, here in bits per
dimension and with the 0-based t of the code: the term at t = 0 is the decoder's (the paper's L_0),
those at t >= 1 are divergences between q(x_{t-1}|x_t, x_0) and p(x_{t-1}|x_t). The formula of a
term is `diffusion.likelihood`; here are the loop over t, the draws of ε, and the stream of batches.
Sums, means and errors of the terms are in `tally`.

Randomness: the noise of draw d of image i at t is a function of (seed, i, d, t) alone, not of the
batch, the devices or the stride. So the terms of a strided estimate are terms of the full sum.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.gaussian import q_sample
from ddpm_jax.diffusion.likelihood import bound_term, mean_over_dims, prior_term
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation.batch_program import BatchProgram, MakeCondition, given
from ddpm_jax.evaluation.batches import ReadBatch, image_batches, labels_of
from ddpm_jax.evaluation.strata import Strata, draw_timesteps
from ddpm_jax.randomness import BOUND, base_key, fold_in, fold_in_each, normal, row_keys


class Terms(NamedTuple):
    """One draw's terms of B images at R timesteps each."""

    t: chex.Array  # int32 [B, R], one of each stratum
    bits: chex.Array  # float32 [B, R], bits/dim
    mse: chex.Array  # float32 [B, R], mean over dimensions of (x_0 - predicted x_0)², on [-1, 1]
    prior: chex.Array  # float32 [B], L_T in bits/dim


class Bound(Protocol):
    """(params, key, draw, images uint8 [B, H, W, C], index [B], labels) -> `Terms`, on the host."""

    def __call__(
        self,
        params: Any,
        key: chex.PRNGKey,
        draw: int,
        images: np.ndarray,
        index: np.ndarray,
        labels: np.ndarray | None = None,
    ) -> Terms: ...


# (keys [B], t [B], (H, W, C)) -> ε
Noise = Callable[[chex.PRNGKey, chex.Array, tuple[int, ...]], chex.Array]


def gaussian_noise(keys: chex.PRNGKey, t: chex.Array, image_shape: tuple[int, ...]) -> chex.Array:
    """Draw ε ~ N(0, I), independent for every key and t: float32 [B, *image_shape]."""
    return normal(jax.vmap(jax.random.fold_in)(keys, t), image_shape)


def make_bound(
    make_denoiser: Callable[..., Denoiser],
    schedule: Schedule,
    strata: Strata,
    *,
    noise: Noise = gaussian_noise,
    make_condition: MakeCondition | None = None,
) -> Bound:
    """Return bound(params, key, draw, images, index, labels=None), run on all local devices.

    The strata are visited in dispatches of about half a second, between which signals are checked;
    see `dispatch.walk`.

    For a conditional model it bounds -log p(x_0 | condition), not -log p(x_0).

    `key` is that of the seed, `draw` the number of the draw, `index` the positions of the images in
    the data. B is a multiple of the local devices; every B is compiled once.

    Args:
      make_denoiser: params -> `Denoiser`, or (params, condition) -> `Denoiser` with
        `make_condition`; traced. For evaluation it clips the predicted x_0, as the original does.
      schedule: all T rows, not traced.
      strata: the t to visit, see `make_strata`.
      noise: ε from the key of each image and t. Another function serves comparisons with given
        noise.
      make_condition: the condition of a conditional model, from the images.

    Raises:
      UsageError: a schedule under which no bound is finite.
    """
    check_has_bound(schedule)
    program = BatchProgram(_Terms(make_denoiser, schedule, strata, noise, make_condition))

    def bound(params, key, draw, images, index, labels=None):
        key = fold_in(key, BOUND)
        return program.run(params, key, draw, program.to_devices(images, index, labels))

    return bound


@dataclasses.dataclass(frozen=True)
class _Terms:
    """The terms of a batch on one device, with one row per stratum; see `batch_program.Parts`."""

    make_denoiser: Callable[..., Denoiser]
    schedule: Schedule
    strata: Strata
    noise: Noise
    make_condition: MakeCondition | None

    @property
    def total(self) -> int:
        return len(self.strata.first)

    def begin(self, shared: Any, examples: Any) -> tuple[chex.Array, ...]:
        visited = len(examples[0]), self.total
        return tuple(jnp.zeros(visited, dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32))

    def advance(
        self, shared: Any, examples: Any, terms: Any, first: Any, last: Any
    ) -> tuple[Any, chex.Array]:
        params, key, draw = shared
        images, index, labels = examples
        x_0 = to_model_range(images)
        denoiser = self.make_denoiser(params, *given(self.make_condition, x_0, labels))
        keys = row_keys(fold_in_each(key, index), draw)

        def at_row(row, terms):
            found = self._at(row, denoiser, x_0, keys)
            return tuple(
                jax.lax.dynamic_update_index_in_dim(all_, one.astype(all_.dtype), row, axis=1)
                for all_, one in zip(terms, found, strict=True)
            )

        return jax.lax.fori_loop(first, last, at_row, terms), jnp.zeros((), bool)

    def _at(
        self, row: Any, denoiser: Denoiser, x_0: chex.Array, keys: chex.PRNGKey
    ) -> tuple[chex.Array, ...]:
        """Return t, bits and squared error of x_0 at a stratum, [B] each."""
        columns = np.arange(self.total), self.strata.first, self.strata.size
        stratum = (
            jax.lax.dynamic_index_in_dim(np.asarray(column, np.int32), row, keepdims=False)
            for column in columns
        )
        t = draw_timesteps(keys, *stratum)
        x_t = q_sample(self.schedule, x_0, t, self.noise(keys, t, x_0.shape[1:]))
        prediction = denoiser(x_t, t)
        bits = bound_term(self.schedule, prediction, x_0, x_t, t)
        return t, bits, mean_over_dims(jnp.square(prediction.x_0 - x_0))

    def finish(self, shared: Any, examples_and_terms: Any) -> Terms:
        (images, *_), terms = examples_and_terms
        prior = prior_term(self.schedule, to_model_range(images))
        return Terms(*terms, prior)


def check_has_bound(schedule: Schedule) -> None:
    """Refuse a chain with a noiseless step, where a density would be compared with a point.

    Raises:
      UsageError: q(x_t|x_0) or, after t = 0, q(x_{t-1}|x_t, x_0) has variance 0 in float64.
    """
    tables = schedule.log_one_minus_alphas_bar, schedule.posterior_log_variance_clipped
    noiseless = ~np.logical_and.reduce([np.isfinite(table) for table in tables])
    if noiseless.any():
        raise UsageError(
            "This model has no likelihood: its schedule adds no noise at t = "
            f"{np.argmax(noiseless)}, where a density is that of a point; choose a larger "
            "diffusion.beta_start."
        )


def stream_terms(
    bound: Bound,
    params: Any,
    source: Source,
    *,
    seed: int,
    num_images: int,
    draws: int,
    batch_size: int,
    done: int = 0,
    first: int = 0,
    read: ReadBatch = labels_of,
    on_evaluations: Callable[[int], None] | None = None,
) -> Iterator[Terms]:
    """Yield the terms of images done..num_images-1, a batch at a time.

    t, bits and mse are [n, draws, R], prior [n]. Only one batch of images, with the terms of one
    draw, is on the devices. Image i is the i-th of the source.

    Args:
      bound: from `make_bound`.
      params: its parameters.
      source: the images; see `batches.check_images`.
      seed: of the noise and of the timesteps.
      num_images: at most len(source).
      draws: the number of independent draws for each image.
      batch_size: images at a time over the devices of this process; rounded up to a multiple of
        them.
      done: the number of images to skip at the start, which an earlier run has done; at least
        `first`.
      first: the image that batches are counted from.
      read: what the bound's `make_condition` is given of a batch, by default its labels.
      on_evaluations: called after every draw of a batch with the network evaluations done in it.

    Raises:
      UsageError: draws or batch_size below 1.
      FailureError: a term that is not finite, or an image that cannot be read.
    """
    if draws < 1:
        raise UsageError(f"draws is {draws}: choose at least 1.")
    key = base_key(seed)
    batches = image_batches(
        source, num_images=num_images, batch_size=batch_size, done=done, first=first
    )
    for batch in batches:
        parts, given_of_batch = [], read(batch)
        for draw in range(draws):
            found = bound(params, key, draw, batch.images, batch.index, given_of_batch)
            parts.append(Terms(*(part[batch.wanted] for part in found)))
            if on_evaluations is not None:
                on_evaluations(parts[-1].t.size)
        terms = Terms(*(np.stack([p[i] for p in parts], axis=1) for i in range(3)), parts[0].prior)
        _check_finite(terms, batch.index[batch.wanted])
        yield terms


def _check_finite(terms: Terms, index: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(terms.bits))
    if len(bad):
        image, draw, row = bad[0]
        raise FailureError(
            f"The term of image {index[image]} at t = {terms.t[image, draw, row]} is "
            f"{terms.bits[image, draw, row]}: the weights have diverged or the predicted variance "
            "is 0, so evaluate an earlier checkpoint."
        )
