"""Images from a trained model: on all local devices, in batches, and in any number as shards on
disk.

Training's sample grid, the sampling command and the evaluations all make their images here. Which
denoiser and which sampler is the caller's choice; pictures (PNG, GIF) are drawn by `plotting`.
"""

import functools
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import randomness
from ddpm_jax.archives import BadArchive, Header, read_npz
from ddpm_jax.data.transforms import to_uint8
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.distributed import hosts, interrupt, pmap
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import as_path, read_file, reporting, write_atomically
from ddpm_jax.generation import dispatch
from ddpm_jax.generation.dispatch import Pace, Watch, unwatched
from ddpm_jax.monitoring.results import check_same
from ddpm_jax.randomness import base_key
from ddpm_jax.samplers import loop
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.schema import LARGEST, Malformed, Table, Whole, parse

MANIFEST = "manifest.json"
_SIZES = Table({"num_images": Whole(1), "shard_size": Whole(1)})


class Generated(NamedTuple):
    """Images and, if asked for, K frames of each one's chain: x_t, and the x_0 predicted from
    it."""

    images: np.ndarray  # uint8 [n, H, W, C]
    frames_x_t: np.ndarray | None = None  # uint8 [K, n, H, W, C], noise first
    frames_x_0: np.ndarray | None = None  # uint8 [K, n, H, W, C]


class Generate(Protocol):
    """Makes the images of the given indices; see `make_generate`."""

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


def from_noise(
    schedule: Schedule, keys: chex.PRNGKey, shape: tuple[int, ...], inputs: Any
) -> chex.Array:
    """The start of a chain that samples: x_T ~ N(0, I) of each of keys [B], whatever the inputs."""
    return randomness.initial_noise(keys, shape)


def pixels(params: Any, x: chex.Array, inputs: Any = None) -> chex.Array:
    """The images, uint8, of a chain that diffuses them themselves."""
    return to_uint8(x)


def as_it_is(sampler: Sampler, inputs: Any) -> Sampler:
    """The sampler of a chain that nothing is done to on its way."""
    return sampler


def make_generate(
    make_denoiser: Callable[[Any, Schedule, Any], Denoiser],
    sampler: Sampler,
    shape: tuple[int, int, int],
    *,
    show: Callable[[Any, chex.Array, Any], chex.Array] = pixels,
    start: Callable[[Schedule, chex.PRNGKey, tuple[int, ...], Any], chex.Array] = from_noise,
    edit: Callable[[Sampler, Any], Sampler] = as_it_is,
    num_frames: int = 0,
    together: bool = False,
) -> Generate:
    """Returns generate(params, base_key, indices, inputs=None, batch_size=None, watch=unwatched) ->
    `Generated`.

    Image i depends only on the base key, `key(seed)`, and on i; the batch and the number of devices
    can change its last digit, where the network's sums are then taken in another order. `indices`
    is int [n], any selection in any order. It is padded to `batch_size`, None for n, rounded up to
    a multiple of the local devices; every padded size is compiled once. Give a last, smaller batch
    the size of the others.

    `inputs` is what the images are made of beside noise: any pytree of arrays [n, ...], labels or
    photographs, or None. `params`, the sampler's schedule and its rows are arguments of the
    compiled program, not constants in it.

    Args:
      make_denoiser: (params, schedule, inputs) -> `Denoiser`; traced.
      sampler: how the chain is walked.
      shape: (h, w, c) of what diffuses.
      show: (params, x [B, h, w, c], inputs) -> the images uint8 [B, H, W, C] that it stands for;
        traced.
      start: (schedule, keys [B], shape, inputs) -> x_T [B, h, w, c], where the chain begins;
        traced.
      edit: (sampler, inputs) -> the sampler that also knows of the inputs; traced.
      num_frames: frames kept of each chain, 0 for none.
      together: all processes of a run make as many images each, and stop together; see
        `dispatch.walk`.

    The chains are walked in dispatches of about half a second, between which generate calls `watch`
    with the rows that are done and their number, and looks at signals.

    Generate raises:
      Stopped: see `dispatch.walk`.
      UsageError: no indices, more than `batch_size`, or `num_frames` not of this chain.
      FailureError: an image that is not finite.
    """
    pace, num_rows = Pace(), sampler.num_rows

    def parts_of(shared, examples):
        _, base_key, schedule, rows = shared
        indices, inputs = examples
        edited = edit(sampler._replace(schedule=schedule, rows=rows), inputs)
        return edited, randomness.image_keys(base_key, indices), inputs

    def set_out(shared, examples):
        edited, keys, inputs = parts_of(shared, examples)
        return loop.begin(edited, start(shared[2], keys, shape, inputs), num_frames=num_frames)

    def go_on(shared, examples, walk, first, last):
        edited, keys, inputs = parts_of(shared, examples)
        denoiser = make_denoiser(shared[0], shared[2], inputs)
        return loop.advance(denoiser, edited, walk, keys, first, last), last == num_rows

    def arrive(shared, examples_and_walk):
        examples, walk = examples_and_walk
        params, (edited, _, inputs) = shared[0], parts_of(shared, examples)
        samples = loop.finish(edited, walk)
        finite = jnp.all(jnp.isfinite(samples.x_0), axis=(1, 2, 3))
        # The images' axis comes first in everything that leaves a device.
        show_all = functools.partial(jax.lax.map, lambda x: show(params, x, inputs))
        frames = [None if f is None else jnp.swapaxes(show_all(f), 0, 1) for f in samples[1:]]
        return Generated(show(params, samples.x_0, inputs), *frames), finite

    begun, segment, arrived = (
        pmap.map_examples(set_out),
        pmap.map_segment(go_on),
        pmap.map_examples(arrive),
    )

    def generate(params, base_key, indices, *, inputs=None, batch_size=None, watch=unwatched):
        indices = np.asarray(indices, np.int32)
        # On the devices once, not with every dispatch.
        shared = pmap.replicate((params, base_key, sampler.schedule, sampler.rows))
        examples = pmap.to_devices([_pad((indices, inputs), len(indices), batch_size)])
        walk = dispatch.walk(
            lambda walk, first, last: segment(shared, examples, walk, first, last),
            begun(shared, examples),
            num_rows,
            pace=pace,
            watch=watch,
            together=together,
        )
        padded = pmap.unshard(arrived(shared, (examples, walk)))
        generated, finite = jax.tree.map(lambda x: x[: len(indices)], padded)
        if not finite.all():
            raise FailureError(
                f"Image {indices[np.argmin(finite)]} came out as not-a-number or infinite: the "
                "weights have diverged, so sample from an earlier checkpoint."
            )
        frames = [None if f is None else np.swapaxes(f, 0, 1) for f in generated[1:]]
        return Generated(generated.images, *frames)

    return generate


def _pad(examples: Any, count: int, batch_size: int | None) -> Any:
    """Repeats the last of `count` examples up to the batch size, and on to a multiple of the local
    devices."""
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
    inputs_of: Callable[[np.ndarray], Any] = lambda indices: None,
    on_rows: Callable[[int, int, int], None] = lambda images, done, total: None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (indices int [n], images uint8 [n, H, W, C]) in order; n is `batch_size` but for the
    last.

    `indices` are the global indices of the images wanted: `range(300)`, say. `inputs_of` gives the
    inputs of the images of some of them, int [n] -> leaves [n, ...]. `on_rows` is called now and
    then with the number of images of the batch under way, and how many rows of its chains are done
    of how many.

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
            params, key, batch, inputs=inputs_of(batch), batch_size=batch_size, watch=watch
        )
        yield batch, made.images


def write_shards(
    directory: str | os.PathLike,
    make_batches: Callable[[np.ndarray], Iterable[tuple[np.ndarray, np.ndarray]]],
    *,
    num_images: int,
    shard_size: int,
    manifest: Mapping[str, Any],
    on_images: Callable[[int], None] | None = None,
) -> None:
    """Streams images 0..num_images-1 to `samples-00000-of-00050.npz`, ...; started again, it goes
    on where it stopped.

    Several processes call it together, with a directory that they share: process p of P makes the
    shards p, P + p, ... and it returns when all are there.

    A shard holds `images`, uint8 [n, H, W, C], and `index`, int64 [n]. It is there whole or not at
    all, and always made of the same batches, so that a set of images finished after any number of
    kills is the one made without them, byte for byte. `manifest.json` is written first. Nothing
    that is there is ever overwritten.

    Args:
      directory: created if need be; another set of images in it is refused.
      make_batches: indices int64 [n] -> (indices, images) of all of them in order, in batches: a
        `generate_batches`. A shard that is no multiple of the batch pads its last batch, so choose
        one that is.
      num_images: of the whole set.
      shard_size: images in each shard but the last.
      manifest: everything needed to make the same images again, as JSON can store it: the digest of
        the weights, step, seed, steps, digests of pictures that are used, versions. `num_images`
        and `shard_size` are added. What `checkpoint` says is for a person: the digests tell whether
        the images are the same.
      on_images: called with the number of images of this process's shards that are done: at the
        start, with those found on disk, and after every batch.

    Raises:
      UsageError: a size below 1, the directory holds a set made from another manifest (the fields
        that differ are named), or it is not the same for all processes.
      FailureError: the disk is full or cannot be written, a shard that is there is damaged or of
        other images, or another command makes images there. Whole shards stay.
      Stopped: by a signal or a time limit. Whole shards stay, and of the one under way the batches
        that are done, in a file `.samples-00000-of-00050.begun`.
    """
    for name, size in (("num_images", num_images), ("shard_size", shard_size)):
        if size < 1:
            raise UsageError(f"{name} is {size}: choose at least 1.")
    with hosts.hold(directory, "making images in it"):
        _write_shards(
            as_path(directory),
            make_batches,
            {**manifest, "num_images": num_images, "shard_size": shard_size},
            on_images or (lambda done: None),
        )


def _write_shards(
    directory: pathlib.Path,
    make_batches: Callable[[np.ndarray], Iterable[tuple[np.ndarray, np.ndarray]]],
    manifest: dict[str, Any],
    on_images: Callable[[int], None],
) -> None:
    with reporting(directory):
        _claim(directory, manifest)
        if hosts.is_primary():
            for leftover in directory.glob(".samples-*.tmp"):
                leftover.unlink()
    hosts.check_shared(directory / MANIFEST)
    mine = _shards(directory, manifest["num_images"], manifest["shard_size"])[
        jax.process_index() :: jax.process_count()
    ]
    missing = [shard for shard in mine if not shard.path.exists()]
    for shard in mine:
        if shard not in missing:
            _check_index(shard)
    total = sum(len(shard.index) for shard in mine)
    done = total - sum(len(shard.index) for shard in missing)
    on_images(done)
    for shard in missing:
        parts = _begun(shard)
        done += sum(map(len, parts))
        try:
            for indices, images in make_batches(shard.index[sum(map(len, parts)) :]):
                parts.append(images)
                done += len(indices)
                on_images(done)
                if done < total:
                    interrupt.check()
        except interrupt.Stopped as stopped:
            if parts:
                _save(shard, parts, shard.begun)
            raise interrupt.Stopped(stopped.wish, _kept(done, total, directory)) from None
        _save(shard, parts, shard.path)
        shard.begun.unlink(missing_ok=True)
    hosts.wait_for_all("all images are there")


def share(num_images: int, shard_size: int) -> int:
    """How many of the images `write_shards` makes in this process."""
    first, step = jax.process_index() * shard_size, jax.process_count() * shard_size
    return sum(min(shard_size, num_images - start) for start in range(first, num_images, step))


def read_shards(directory: str | os.PathLike, count: int | None = None) -> np.ndarray:
    """Returns the images that `write_shards` wrote, in the order of their index: uint8 [N, H, W,
    C].

    Args:
      directory: of the images.
      count: only the first so many; all by default.

    Raises:
      UsageError: no images here, or not yet all that are wanted.
      FailureError: a file is damaged, or holds other images than its name says.
    """
    directory = as_path(directory)
    manifest = _read_manifest(directory)
    if manifest is None:
        raise UsageError(
            f"{directory} holds no {MANIFEST}: name a directory that sampled images were written "
            "to."
        )
    shards = _shards(directory, manifest["num_images"], manifest["shard_size"])
    shards = [shard for shard in shards if count is None or shard.index[0] < count]
    missing = [shard.path.name for shard in shards if not shard.path.exists()]
    if missing:
        raise UsageError(
            f"{directory} lacks {len(missing)} of {len(shards)} shards, {missing[0]} first: "
            "start the command that writes them again, and it will go on where it stopped."
        )
    images = [_read_shard(shard) for shard in shards]
    for shard, found in zip(shards, images, strict=True):
        if found.shape[1:] != images[0].shape[1:]:
            raise FailureError(
                f"{shard.path} holds images of another size than {shards[0].path.name}: delete it."
            )
    return np.concatenate(images)[:count]


class _Shard(NamedTuple):
    path: pathlib.Path
    index: np.ndarray  # int64 [n]

    @property
    def begun(self) -> pathlib.Path:
        """Where its first batches are kept while it is not whole."""
        return self.path.with_name(f".{self.path.stem}.begun")


def _save(shard: _Shard, parts: Sequence[np.ndarray], path: pathlib.Path) -> None:
    images, buffer = np.concatenate(parts), io.BytesIO()
    np.savez(buffer, images=images, index=shard.index[: len(images)])
    with reporting(path):
        write_atomically(path, buffer.getvalue())


def _begun(shard: _Shard) -> list[np.ndarray]:
    """The images of the shard that a stopped command had made, uint8 [n, H, W, C] in a list; else
    an empty one."""
    if not shard.begun.exists():
        return []
    with reporting(shard.begun, "read"):
        data = read_file(shard.begun)
    headers = {
        "images": Header(np.dtype(np.uint8), (None, None, None, None)),
        "index": Header(np.dtype(np.int64), (None,)),
    }
    try:
        images, index = read_npz(data, headers).values()
    except BadArchive:
        return []  # they are made again
    fits = len(images) == len(index) < len(shard.index) and np.array_equal(
        index, shard.index[: len(index)]
    )
    return [images] if fits else []


def _kept(done: int, total: int, directory: os.PathLike) -> str:
    if not done:
        return f"no batch of {directory} was done yet: a smaller --batch_size is done sooner."
    return (
        f"{done} of {total} images are kept in {directory}; the same command goes on with the rest."
    )


def _shards(directory: pathlib.Path, num_images: int, shard_size: int) -> list[_Shard]:
    count = -(-num_images // shard_size)
    indices = np.split(np.arange(num_images), range(shard_size, num_images, shard_size))
    return [
        _Shard(directory / f"samples-{i:05d}-of-{count:05d}.npz", index)
        for i, index in enumerate(indices)
    ]


def _claim(directory: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest into a directory that has none; refuses one that holds another set of
    images."""
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file: name a directory for the images.")
    manifest = json.loads(json.dumps(manifest))  # what a reader will find: tuples are lists there
    found = _read_manifest(directory)
    if found is None:
        if next(directory.glob("samples-*.npz"), None) is not None:
            raise UsageError(
                f"{directory} holds images without a {MANIFEST}: name another directory."
            )
        if hosts.is_primary():
            write_atomically(directory / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        return
    check_same(f"{directory} holds images", found, manifest)


def _read_manifest(directory: pathlib.Path) -> dict[str, Any] | None:
    path = directory / MANIFEST
    with reporting(path, "read"):
        data = read_file(path, largest=LARGEST + 1) if path.exists() else None
    try:
        return None if data is None else parse(data, _SIZES)
    except Malformed as error:
        raise FailureError(
            f"{path} is damaged ({error}): name another directory, or restore this file."
        ) from None


def _check_index(shard: _Shard) -> None:
    """Looks at the numbers of a shard's images alone."""
    _check_numbers(shard, _arrays(shard, {"index": _numbers(shard)})["index"])


def _read_shard(shard: _Shard) -> np.ndarray:
    images = Header(np.dtype(np.uint8), (len(shard.index), None, None, None))
    images, index = _arrays(shard, {"images": images, "index": _numbers(shard)}).values()
    _check_numbers(shard, index)
    return images


def _numbers(shard: _Shard) -> Header:
    return Header(np.dtype(np.int64), shard.index.shape)


def _arrays(shard: _Shard, headers: Mapping[str, Header]) -> dict[str, np.ndarray]:
    with reporting(shard.path, "read"):
        data = read_file(shard.path)
    try:
        return read_npz(data, headers)
    except BadArchive as error:
        raise FailureError(
            f"{shard.path} is damaged ({error}): delete it and sample again."
        ) from error


def _check_numbers(shard: _Shard, index: np.ndarray) -> None:
    if not np.array_equal(index, shard.index):
        raise FailureError(
            f"{shard.path} holds other images than its name says: delete it and sample again."
        )
