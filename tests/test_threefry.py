"""Keys of `threefry` draw what JAX's own keys of the same numbers draw; fewer kernels draw it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import randomness
from ddpm_jax.randomness import base_key
from ddpm_jax.threefry import THREEFRY

SEEDS = (0, 7, 2**31, 2**32 - 1)
DRAWS = {
    "fold_in": lambda key: jax.random.key_data(jax.random.fold_in(key, 2**32 - 3)),
    "split": lambda key: jax.random.key_data(jax.random.split(key, (3, 2))),
    "normal": lambda key: jax.random.normal(key, (3, 5)),
    "bfloat16": lambda key: jax.random.normal(key, (6,), jnp.bfloat16),
    "scalar": lambda key: jax.random.uniform(key),
    "nothing": lambda key: jax.random.uniform(key, (0, 2)),
    "bytes": lambda key: jax.random.bits(key, (7,), jnp.uint8),
    "signs": lambda key: jax.random.rademacher(key, (2, 3, 4), jnp.float32),
    "masks": lambda key: jax.random.bernoulli(key, 0.3, (3, 4, 2)),
    "integers": lambda key: jax.random.randint(key, (4,), 0, 1000),
    "permutation": lambda key: jax.random.permutation(key, 10),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_key_draws_what_jaxs_key_draws(draw, seed):
    expected = draw(jax.random.key(seed))
    for key in (base_key(seed), jax.random.key(seed, impl=THREEFRY)):
        np.testing.assert_array_equal(draw(key), expected)
        np.testing.assert_array_equal(jax.jit(draw)(key), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_of_a_known_key_are_those_of_a_traced_one_and_of_jax(seed, caplog):
    index = np.array([0, 5, 2**31 - 1, 3])
    of_jax = jax.random.fold_in(jax.random.key(seed), randomness.SAMPLING)
    expected = [jax.random.key_data(jax.random.fold_in(of_jax, i)) for i in index]
    key = base_key(seed)
    with jax.log_compiles():
        known = randomness.image_keys(key, index)
    assert not caplog.records
    np.testing.assert_array_equal(jax.random.key_data(known), expected)
    for given in (key, jax.random.key(seed)):
        traced = jax.jit(randomness.image_keys)(given, index)
        np.testing.assert_array_equal(jax.random.key_data(traced), expected)


def test_words_of_64_bits_are_jaxs_too():
    with jax.enable_x64(True):
        expected = jax.random.normal(jax.random.key(7), (5,))
        assert expected.dtype == np.float64
        np.testing.assert_array_equal(jax.random.normal(base_key(7), (5,)), expected)


def test_known_answer_of_the_authors():
    """The first vector for Threefry-2x32 of 20 rounds in the tests of Random123: all zeros."""
    high, low = jax.random.key_data(jax.random.fold_in(base_key(0), 0))
    assert (int(high), int(low)) == (0x6B200159, 0x99BA4EFE)


def test_a_draw_of_more_numbers_than_counters_is_refused():
    with pytest.raises(ValueError, match="more counters than there are"):
        jax.jit(lambda: jax.random.bits(base_key(0), (2**16, 2**16))).lower()


def test_bits_of_many_keys_are_one_kernel_and_no_loop():
    keys = jax.random.split(base_key(7), 3)
    draw = jax.jit(jax.vmap(lambda key: jax.random.bits(key, (50,))))
    program = draw.lower(keys).compile().as_text()
    assert "while(" not in program
    assert len(set(re.findall(r"= u32\[3,50\]\S* fusion\(", program))) == 1


def test_keys_of_one_key_are_made_by_one_kernel():
    def keys(key):
        return [jax.random.key_data(jax.random.fold_in(key, i)) for i in range(1000, 1005)]

    program = jax.jit(keys).lower(base_key(7)).compile().as_text()
    bodies = re.findall(
        r"^%?fused_computation\S* [^\n]*\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL
    )
    constants = [sorted(re.findall(r"constant\((\d+)\)", body)) for body in bodies]
    assert len(bodies) == 5
    assert all(found == constants[0] for found in constants)


def test_other_devices_use_jaxs_hash_and_draw_the_same(monkeypatch):
    def draws(key):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(jax.random.split(key, 3), 7)
        return randomness.normal(keys, (4, 2)), jax.random.randint(key, (5,), 0, 9)

    expected = jax.jit(draws)(jax.random.key(3))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    program = jax.jit(lambda key: draws(key)).lower(base_key(3))
    assert "while" in program.as_text()  # the loop of JAX's hash on this CPU
    found = program.compile()(base_key(3))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
