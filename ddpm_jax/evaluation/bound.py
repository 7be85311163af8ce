"""The variational bound over a set of images: the terms of eq. 5 on the device, at every t or at a
random part of them.

Ho et al. 2020, eq. 5: -log p(x_0) is at most L_T + the sum over t of the terms, here in bits per
dimension and with the 0-based t of the code: the term at t = 0 is the decoder's (the paper's L_0),
those at t >= 1 are divergences between q(x_{t-1}|x_t, x_0) and p(x_{t-1}|x_t). The formula of a
term is `diffusion.likelihood`; here are the loop over t, the draws of ε, and the stream of batches.
What is kept of them, and the means and errors, are in `tally`.

Randomness: the noise of draw d of image i at t is a function of (seed, i, d, t) alone: not of the
batch, the devices or the stride. So a strided estimate is made of terms of the full sum.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.diffusion.gaussian import q_sample
from ddpm_jax.diffusion.likelihood import bound_term, mean_over_dims, prior_term
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.distributed import pmap
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation.batches import image_batches
from ddpm_jax.generation import dispatch
from ddpm_jax.generation.dispatch import Pace
from ddpm_jax.randomness import BOUND, TIMES, base_key, fold_in_each, normal

# A constant never changes: that would change every result.
SHORTER = 4  # a run of timesteps is at most so many times shorter than the t it starts at


class Strata(NamedTuple):
    """R runs of neighbouring timesteps that together are 0..T-1. One t is drawn from each, and
    counts for all of it."""

    first: np.ndarray  # int32 [R], increasing
    size: np.ndarray  # int32 [R], adds up to T

    def weights(self) -> np.ndarray:
        """The size of the stratum that each t lies in, float64 [T]: what a term that was drawn
        counts for."""
        return np.repeat(self.size, self.size).astype(np.float64)


class Terms(NamedTuple):
    """What one draw says of B images at R timesteps each."""

    t: chex.Array  # int32 [B, R], one of each stratum
    bits: chex.Array  # float32 [B, R], bits/dim
    mse: chex.Array  # float32 [B, R], mean over dimensions of (x_0 - predicted x_0)², on [-1, 1]
    prior: chex.Array  # float32 [B], L_T in bits/dim


class Bound(Protocol):
    """(params, key, draw, images uint8 [B, H, W, C], index int [B]) -> `Terms` as NumPy arrays; see
    `make_bound`."""

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


def make_strata(num_timesteps: int, stride: int = 1) -> Strata:
    """Cuts 0..T-1 into runs of `stride` timesteps, but shorter ones at the start: a run from t on
    has at most t/4.

    A t drawn uniformly from each run, its term counted once for every t of the run, makes an
    unbiased estimate of the sum over all t; with `stride` 1 every t is taken and the sum is the
    sum. The terms are largest and change fastest at small t, roughly like 1/t, so that runs in
    proportion to t cost few evaluations more and most of the variance less; the decoder's term at t
    = 0 is a run by itself.

    Args:
      num_timesteps: T.
      stride: in 1..T.

    Raises:
      UsageError: `stride` is not in 1..T.
    """
    if not 1 <= stride <= num_timesteps:
        raise UsageError(
            f"The timestep stride is {stride}: the chain has {num_timesteps} timesteps, so choose "
            f"1 (all of them) to {num_timesteps}."
        )
    first, size = [], []
    t = 0
    while t < num_timesteps:
        first.append(t)
        size.append(min(stride, max(1, t // SHORTER), num_timesteps - t))
        t += size[-1]
    return Strata(np.array(first, np.int32), np.array(size, np.int32))


def gaussian_noise(keys: chex.PRNGKey, t: chex.Array, image_shape: tuple[int, ...]) -> chex.Array:
    """ε ~ N(0, I), independent for every key and t: float32 [B, *image_shape]."""
    return normal(jax.vmap(jax.random.fold_in)(keys, t), image_shape)


def draw_timesteps(
    keys: chex.PRNGKey, row: chex.Array, first: chex.Array, size: chex.Array
) -> chex.Array:
    """One t of stratum number `row` for each image, uniform over it, independent of the other
    images: int32 [B]."""

    def draw(key):
        key = jax.random.fold_in(jax.random.fold_in(key, TIMES), row)
        return first + jax.random.randint(key, (), 0, size)

    return jax.vmap(draw)(keys)


def make_bound(
    make_denoiser: Callable[..., Denoiser],
    schedule: Schedule,
    strata: Strata,
    *,
    noise: Noise = gaussian_noise,
    condition_of: Callable[[chex.Array, chex.Array | None], Any] | None = None,
) -> Bound:
    """Returns bound(params, key, draw, images, index, labels=None): a loop over the strata, on all
    devices.

    It is walked in dispatches of about half a second, between which signals are seen; see
    `dispatch.walk`.

    Of a conditional model it is the bound on -log p(x_0 | its condition), and no bound on -log
    p(x_0).

    `key` is that of the seed, `draw` the number of the draw, `index` the images' places in the
    data. B is a multiple of the local devices; every B is compiled once.

    Args:
      make_denoiser: params -> `Denoiser`, or (params, condition) -> `Denoiser` with `condition_of`;
        traced. For evaluation it clips the predicted x_0, as the original does.
      schedule: all T rows, not traced.
      strata: which t are visited, see `make_strata`.
      noise: ε of each image's key and t. Another one serves comparisons with given noise.
      condition_of: (x_0, labels int [B]) -> what a conditional model is told of the images.

    Raises:
      UsageError: a schedule under which no bound is finite.
    """
    check_has_bound(schedule)

    pace, num_rows = Pace(), len(strata.first)
    table = tuple(
        np.asarray(column, np.int32) for column in (np.arange(num_rows), strata.first, strata.size)
    )

    def empty(shared, examples):
        visited = num_rows, len(examples[0])
        return (
            jnp.zeros(visited, jnp.int32),
            jnp.zeros(visited, jnp.float32),
            jnp.zeros(visited, jnp.float32),
        )

    def visit(shared, examples, terms, first, last):
        params, key, draw = shared
        images, index, labels = examples
        x_0 = to_model_range(images)
        denoiser = make_denoiser(
            params, *(() if condition_of is None else (condition_of(x_0, labels),))
        )
        image_keys = fold_in_each(jax.random.fold_in(key, BOUND), index)
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(image_keys, draw)

        def at_row(row, terms):
            stratum = (
                jax.lax.dynamic_index_in_dim(column, row, keepdims=False) for column in table
            )
            t = draw_timesteps(keys, *stratum)
            x_t = q_sample(schedule, x_0, t, noise(keys, t, x_0.shape[1:]))
            prediction = denoiser(x_t, t)
            bits = bound_term(schedule, prediction, x_0, x_t, t)
            found = t, bits, mean_over_dims(jnp.square(prediction.x_0 - x_0))
            return tuple(
                all_.at[row].set(one.astype(all_.dtype))
                for all_, one in zip(terms, found, strict=True)
            )

        return jax.lax.fori_loop(first, last, at_row, terms), last == num_rows

    def result(shared, examples_and_terms):
        (images, *_), terms = examples_and_terms
        # The images' axis comes first in everything that leaves a device.
        return Terms(*(part.T for part in terms), prior_term(schedule, to_model_range(images)))

    begun, segment, finished = (
        pmap.map_examples(empty),
        pmap.map_segment(visit),
        pmap.map_examples(result),
    )

    def bound(params, key, draw, images, index, labels=None):
        chex.assert_type(images, np.uint8)
        shared = pmap.replicate((params, key, np.int32(draw)))
        examples = pmap.to_devices([(images, np.asarray(index, np.int32), labels)])
        terms = dispatch.walk(
            lambda terms, first, last: segment(shared, examples, terms, first, last),
            begun(shared, examples),
            num_rows,
            pace=pace,
        )
        return pmap.unshard(finished(shared, (examples, terms)))

    return bound


def check_has_bound(schedule: Schedule) -> None:
    """Refuses a chain that has a step without noise, where a density is compared with a point.

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


def check_images(
    source: Source, image_shape: tuple[int, int, int], *, split: str, num_images: int | None
) -> int:
    """Returns how many images of the split to take: `num_images`, or all for None.

    Raises:
      UsageError: more than there are, fewer than 1, images of another shape than the model's, or
        not of 8 bits.
    """
    if num_images is not None and not 1 <= num_images <= len(source):
        raise UsageError(
            f"num_images is {num_images}: split {split!r} has {len(source)} images, choose 1 to so "
            "many."
        )
    if tuple(source.image_shape) != tuple(image_shape):
        here, there = ("x".join(map(str, shape)) for shape in (source.image_shape, image_shape))
        raise UsageError(
            f"The images of split {split!r} are {here}, but the model was trained on {there}: give "
            "data of its shape."
        )
    dtype = source[0]["image"].dtype
    if dtype != np.uint8:
        raise UsageError(
            f"The images of split {split!r} are {dtype}: bits per dimension are those of 8-bit "
            "data, so give uint8 values in 0..255."
        )
    return len(source) if num_images is None else num_images


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
    on_evaluations: Callable[[int], None] | None = None,
) -> Iterator[Terms]:
    """Yields the terms of images done..num_images-1, a batch at a time: t, bits and mse are [n,
    draws, R], prior [n].

    Only one batch of images is on the devices, and one draw's terms of it. Image i is the i-th of
    the source.

    Args:
      bound: of `make_bound`.
      params: its parameters.
      source: the images; see `check_images`.
      seed: of the noise and of the timesteps.
      num_images: at most len(source).
      draws: independent draws of each image.
      batch_size: images at a time over this process's devices; rounded up to a multiple of them.
      done: images to leave out at the start, those that an earlier run has done; any number from
        `first` on.
      first: the image that batches are counted from.
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
    for images, labels, index, wanted in batches:
        parts = []
        for draw in range(draws):
            found = bound(params, key, draw, images, index, labels)
            parts.append(Terms(*(part[wanted] for part in found)))
            if on_evaluations is not None:
                on_evaluations(parts[-1].t.size)
        terms = Terms(*(np.stack([p[i] for p in parts], axis=1) for i in range(3)), parts[0].prior)
        _check_finite(terms, index[wanted])
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
