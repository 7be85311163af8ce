"""Images from a trained model, made on all local devices in batches.

The sample grid of training, the sampling command and the evaluations all make their images here.
The caller chooses denoiser and sampler; `storing` writes the images.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import randomness
from ddpm_jax.data.transforms import to_uint8
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.distributed import pmap
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.generation import dispatch
from ddpm_jax.generation.dispatch import Pace, Watch, unwatched
from ddpm_jax.randomness import base_key
from ddpm_jax.samplers import loop
from ddpm_jax.samplers.loop import Sampler


class Generated(NamedTuple):
    """Images and, on request, K frames of each chain: x_t, and the x_0 predicted from it."""

    images: np.ndarray  # uint8 [n, H, W, C]
    frames_x_t: np.ndarray | None = None  # uint8 [K, n, H, W, C], noise first
    frames_x_0: np.ndarray | None = None  # uint8 [K, n, H, W, C]


class Generate(Protocol):
    """A function that makes the images of the given indices; see `make_generate`."""

    def __call__(
        self,
        params: Any,
        base_key: chex.PRNGKey,
        indices: Sequence[int],
        *,
        inputs: Any = None,
        batch_size: int | None = None,
        watch: Watch = unwatched,
    ) -> Generated: ...


def pixels(params: Any, x: chex.Array, inputs: Any = None) -> chex.Array:
    """Return the images, uint8, of a chain in pixel space."""
    return to_uint8(x)


def make_generate(
    make_denoiser: Callable[[Any, Schedule, Any], Denoiser],
    sampler: Sampler,
    shape: tuple[int, int, int],
    *,
    decode: Callable[[Any, chex.Array, Any], chex.Array] = pixels,
    start: Callable[[chex.PRNGKey, Any], chex.Array] | None = None,
    step_noise: Callable[[Any], chex.Array | None] = lambda inputs: None,
    num_frames: int = 0,
    together: bool = False,
) -> Generate:
    """Return a function that makes images, `Generate`.

    It is generate(params, base_key, indices, inputs=None, batch_size=None, watch=unwatched) ->
    `Generated`.

    Image i depends only on the base key, `key(seed)`, and on i; the batch and the number of devices
    can change its last digit, where they change the order of the network's sums. `indices` is int
    [n], any selection in any order. It is padded to `batch_size`, None for n, rounded up to a
    multiple of the local devices; every padded size is compiled once. Give a last, smaller batch
    the size of the others.

    `inputs` are the inputs of the images besides noise: any pytree of arrays [n, ...], labels or
    photographs, or None. `params`, the sampler's schedule and its rows are arguments of the
    compiled program, not constants in it.

    Args:
      make_denoiser: (params, schedule, inputs) -> `Denoiser` on the sampler's schedule; traced.
      sampler: the table to walk and its step.
      shape: (h, w, c) of the diffused array.
      decode: (params, x [B, h, w, c], inputs) -> its images uint8 [B, H, W, C]; traced.
      start: (keys [B], inputs) -> x_T [B, h, w, c], where the chain begins; None for noise from
        each key. Traced.
      step_noise: inputs -> the noise of the steps, [N, B, h, w, c]; None for that of the keys.
      num_frames: frames kept of each chain, 0 for none.
      together: whether all processes of a run make the same number of images and stop together; see
        `dispatch.walk`.

    The chains are walked in dispatches of about half a second, between which generate calls `watch`
    with the number of finished rows and their total, and checks signals.

    Generate raises:
      Stopped: see `dispatch.walk`.
      UsageError: no indices, more than `batch_size`, or `num_frames` that this chain does not have.
      FailureError: an image that is not finite.
    """
    pace, num_rows = Pace(), sampler.num_rows

    def initial_noise(keys):
        return sampler.start_scale * randomness.initial_noise(keys, shape)

    def unpack(shared, examples):
        """Return the sampler with its tables as arguments, the keys of the images, their inputs."""
        _, base_key, schedule, rows = shared
        numbers, inputs = examples
        keys = jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(base_key))
        return sampler._replace(schedule=schedule, rows=rows), keys, inputs

    def begin(shared, examples):
        sampler, keys, inputs = unpack(shared, examples)
        x_T = initial_noise(keys) if start is None else start(keys, inputs)
        return loop.begin(sampler, x_T, num_frames=num_frames)

    def advance(shared, examples, walk, first, last):
        sampler, keys, inputs = unpack(shared, examples)
        denoiser = make_denoiser(shared[0], sampler.schedule, inputs)
        noise = step_noise(inputs)
        walk = loop.advance(denoiser, sampler, walk, keys, first, last, step_noise=noise)
        return walk, jnp.zeros((), bool)

    def finish(shared, examples_and_walk):
        examples, walk = examples_and_walk
        sampler, _, inputs = unpack(shared, examples)
        samples = loop.finish(sampler, walk)
        finite = jnp.all(jnp.isfinite(samples.x_0), axis=(1, 2, 3))
        # The images' axis comes first in everything that leaves a device.
        decode_all = functools.partial(jax.lax.map, lambda x: decode(shared[0], x, inputs))
        frames = [None if f is None else jnp.swapaxes(decode_all(f), 0, 1) for f in samples[1:]]
        return Generated(decode(shared[0], samples.x_0, inputs), *frames), finite

    begin, finish = pmap.map_examples(begin), pmap.map_examples(finish)
    advance = pmap.map_segment(advance)

    def generate(params, base_key, indices, *, inputs=None, batch_size=None, watch=unwatched):
        indices = np.asarray(indices, np.int32)
        # On the devices once, not with every dispatch.
        shared = pmap.replicate((params, base_key, sampler.schedule, sampler.rows))
        numbers = jax.random.key_data(randomness.image_keys(base_key, indices))
        examples = pmap.to_devices([_pad((numbers, inputs), len(indices), batch_size)])
        walk = dispatch.walk(
            lambda walk, first, last: advance(shared, examples, walk, first, last),
            begin(shared, examples),
            num_rows,
            pace=pace,
            watch=watch,
            together=together,
        )
        padded = pmap.unshard(finish(shared, (examples, walk)))
        generated, finite = jax.tree.map(lambda x: x[: len(indices)], padded)
        _check_finite(finite, indices)
        frames = [None if f is None else np.swapaxes(f, 0, 1) for f in generated[1:]]
        return Generated(generated.images, *frames)

    return generate


def _check_finite(finite: np.ndarray, indices: np.ndarray) -> None:
    if not finite.all():
        raise FailureError(
            f"Image {indices[np.argmin(finite)]} came out as not-a-number or infinite: the "
            "weights have diverged, so sample from an earlier checkpoint."
        )


def _pad(examples: Any, count: int, batch_size: int | None) -> Any:
    """Repeat the last of `count` examples up to the batch size.

    The size is rounded up to a multiple of the local devices.
    """
    batch_size = count if batch_size is None else batch_size
    if not 1 <= count <= batch_size:
        raise UsageError(
            f"{count} images are asked for in a batch of {batch_size}: choose 1 to {batch_size}."
        )
    devices = jax.local_device_count()
    place = np.minimum(np.arange(-(-batch_size // devices) * devices), count - 1)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[place], examples)


def generate_batches(
    generate: Generate,
    params: Any,
    *,
    seed: int,
    indices: Sequence[int],
    batch_size: int,
    make_inputs: Callable[[np.ndarray], Any] = lambda indices: None,
    on_rows: Callable[[int, int, int], None] = lambda images, done, total: None,
) -> Iterator[tuple[np.ndarray, Generated]]:
    """Yield (indices int [n], what was made of them) in order, n at most `batch_size`.

    Only the last n is smaller.

    `indices` are the global indices of the images, `range(300)` for example. `make_inputs` returns
    the inputs for a batch of indices, int [n] -> leaves [n, ...]. `on_rows` is called between
    dispatches with the number of images in the current batch, the number of finished rows of its
    chains and their total.

    Raises:
      UsageError: `batch_size` is not positive.
      Stopped: see `dispatch.walk`.
    """
    if batch_size < 1:
        raise UsageError(f"The batch size is {batch_size}: choose at least 1.")
    key = base_key(seed)
    indices = np.asarray(indices)
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        watch = functools.partial(on_rows, len(batch))
        made = generate(
            params, key, batch, inputs=make_inputs(batch), batch_size=batch_size, watch=watch
        )
        yield batch, made
