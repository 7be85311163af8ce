"""JAX's keys of Threefry, the same draws, in programs that XLA for CPUs compiles faster.

JAX has the hash's twenty rounds as a loop on CPUs. XLA compiles a dozen kernels for it at each
shape of keys and counters, and its turns go through memory. Here the rounds stand one after the
other, which is one kernel, compiled by itself, whatever is made of the bits: to compile normal
noise takes a tenth of the time, to draw it a third. Other devices use JAX's hash.

Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3; Threefry-2x32 of 20 rounds.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import define_prng_impl, threefry2x32_p

from ddpm_jax.separate_calls import compiled_apart

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # bits, of the rounds in turn
PARITY = 0x1BD11BDA  # of the key schedule, from Skein
ROUNDS = 20


Words = jax.Array | np.ndarray


def _hash(key: tuple[Words, Words], low: Words) -> tuple[Words, Words]:
    """Return the two words of each counter (0, low), uint32; the key broadcasts."""
    schedule = (*key, key[0] ^ key[1] ^ np.uint32(PARITY))
    high, low = schedule[0], low + schedule[1]
    for i in range(ROUNDS // 4):
        for bits in ROTATIONS[i % 2]:
            high = high + low
            low = high ^ ((low << np.uint32(bits)) | (low >> np.uint32(32 - bits)))
        high = high + schedule[(i + 1) % 3]
        low = low + schedule[(i + 2) % 3] + np.uint32(i + 1)
    return high, low


def _hash_on_device(
    key: tuple[jax.Array, jax.Array], low: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the two words of each counter (0, low), uint32 of the shape of `low`."""
    if jax.default_backend() == "cpu":
        return _hash(key, low)
    return tuple(threefry2x32_p.bind(*key, jnp.zeros_like(low), low))


@compiled_apart()
def _key_of(key: jax.Array, low: jax.Array) -> jax.Array:
    """Return the hash of the counter (0, low) as a key, uint32 [2]."""
    return jnp.stack(_hash_on_device((key[0], key[1]), low))


@compiled_apart("size", "as_pairs")
def _words(key: jax.Array, *, size: int, as_pairs: bool) -> jax.Array:
    """Return the hashes of the counters (0, 0) to (0, size-1).

    They are the xor of both words, uint32 [size], or both, [size, 2].
    """
    high, low = _hash_on_device((key[0], key[1]), lax.iota(np.uint32, size))
    return jnp.stack([high, low], axis=-1) if as_pairs else high ^ low


def _seed(seed: jax.Array) -> jax.Array:
    return jnp.stack([jnp.uint32(0), seed.astype(jnp.uint32)])


def _fold_in(key: jax.Array, data: jax.Array) -> jax.Array:
    # XLA puts a constant into a copy of the function, of which it compiles one for each
    return _key_of(key, lax.optimization_barrier(jnp.asarray(data).astype(jnp.uint32)))


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return _words(key, size=_size(shape), as_pairs=True).reshape(*shape, 2)


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    size = _size(shape)
    if bit_width == 64:
        high, low = jnp.moveaxis(_words(key, size=size, as_pairs=True).astype(jnp.uint64), -1, 0)
        bits = (high << np.uint64(32)) | low
    else:
        bits = _words(key, size=size, as_pairs=False).astype(f"uint{bit_width}")
    return bits.reshape(shape)


def _size(shape: tuple[int, ...]) -> int:
    size = math.prod(shape)
    if size >= 2**32:
        raise ValueError(f"A draw of shape {shape} needs more counters than there are, 2**32.")
    return size


def folded(key: jax.Array, data: np.ndarray | int) -> jax.Array | None:
    """Return the keys `fold_in(key, data)`, of the shape of `data`, computed by NumPy.

    So nothing is compiled. None, where the key or the data are not known or the key is not of
    `THREEFRY`.
    """
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if any(isinstance(array, jax.core.Tracer) for array in (key, data)) or not (
        is_typed and key.shape == () and jax.random.key_impl(key) == THREEFRY
    ):
        return None
    words = np.asarray(jax.random.key_data(key))[:, None]
    low = np.asarray(data).astype(np.uint32)
    high_and_low = _hash((words[0], words[1]), low.reshape(-1))
    keys = np.stack(high_and_low, axis=-1).reshape(*low.shape, 2)
    return jax.random.wrap_key_data(keys, impl=THREEFRY)


THREEFRY = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32, unrolled",
    tag="fry",
)
