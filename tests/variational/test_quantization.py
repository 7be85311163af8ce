"""Codebooks: the nearest code, the paths of gradients, the dictionary as mini-batch k-means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.cluster import vq
from scipy.spatial import cKDTree

from ddpm_jax.variational import quantization
from ddpm_jax.variational.quantization import Dictionary

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(3, 4, 5, 6)).astype(np.float32)
CODEBOOK = RNG.normal(size=(32, 6)).astype(np.float32)


def test_the_code_is_the_nearest():
    codes, index = quantization.quantize(Z, CODEBOOK)
    np.testing.assert_array_equal(index, cKDTree(CODEBOOK).query(Z)[1])
    np.testing.assert_array_equal(codes, CODEBOOK[index])
    assert index.dtype == jnp.int32


def test_codes_close_to_each_other_but_far_from_zero_are_told_apart():
    codebook = np.float32([[100.0, 0.0], [100.01, 0.0]])
    assert quantization.quantize(
        jnp.float32([[100.011, 0.0], [99.9, 0.0]]), codebook
    ).index.tolist() == [1, 0]


def test_straight_through_has_the_codes_values_and_hands_the_decoders_gradient_to_the_encoder():
    codes, _ = quantization.quantize(Z, CODEBOOK)
    decoder = RNG.normal(size=Z.shape).astype(np.float32)

    def decoded(z, codebook):
        return jnp.sum(
            decoder
            * jnp.sin(quantization.straight_through(z, quantization.quantize(z, codebook).codes))
        )

    np.testing.assert_array_equal(quantization.straight_through(Z, codes), codes)  # to the last bit
    to_encoder, to_codebook = jax.grad(decoded, argnums=(0, 1))(Z, CODEBOOK)
    # the gradient at the decoder's input
    np.testing.assert_allclose(to_encoder, decoder * np.cos(codes), atol=1e-5)
    assert not np.any(to_codebook)


def test_the_codebooks_loss_moves_codes_only_and_the_commitment_vectors_only():
    def total(loss):
        return lambda z, codebook: jnp.sum(loss(z, quantization.quantize(z, codebook).codes))

    codes, index = quantization.quantize(Z, CODEBOOK)
    to_z, to_codebook = jax.grad(total(quantization.codebook_loss), argnums=(0, 1))(Z, CODEBOOK)
    assert not np.any(to_z)
    expected = np.zeros_like(CODEBOOK)
    np.add.at(expected, np.asarray(index), 2 * (np.asarray(codes) - Z))
    np.testing.assert_allclose(to_codebook, expected, atol=1e-5)
    to_z, to_codebook = jax.grad(total(quantization.commitment_loss), argnums=(0, 1))(Z, CODEBOOK)
    np.testing.assert_allclose(to_z, 2 * (Z - codes), atol=1e-5)
    assert not np.any(to_codebook)


def test_without_memory_the_dictionary_is_a_step_of_k_means():
    z = RNG.normal(size=(500, 6)).astype(np.float32)
    expected, labels = vq.kmeans2(
        z.astype(np.float64), CODEBOOK[:8].astype(np.float64), iter=1, minit="matrix"
    )
    index = quantization.quantize(z, CODEBOOK[:8]).index
    updated = quantization.update_dictionary(
        quantization.make_dictionary(CODEBOOK[:8]), z, index, decay=0.0
    )
    np.testing.assert_array_equal(updated.counts, np.bincount(labels, minlength=8))
    np.testing.assert_allclose(
        quantization.dictionary_codebook(updated, smoothing=0.0), expected, rtol=1e-4, atol=1e-5
    )


def test_on_fixed_data_the_dictionary_converges_to_the_fixed_point_of_k_means():
    z = RNG.normal(size=(300, 2)).astype(np.float32)

    @jax.jit
    def step(dictionary, _):
        index = quantization.quantize(z, quantization.dictionary_codebook(dictionary)).index
        return quantization.update_dictionary(dictionary, z, index, decay=0.9), None

    dictionary, _ = jax.lax.scan(step, quantization.make_dictionary(z[:5]), None, length=600)
    codebook = np.asarray(quantization.dictionary_codebook(dictionary), np.float64)
    again, _ = vq.kmeans2(z.astype(np.float64), codebook, iter=1, minit="matrix")
    np.testing.assert_allclose(codebook, again, atol=1e-3)


def test_the_averages_forget_at_the_given_rate():
    start = Dictionary(jnp.float32([4.0, 2.0]), jnp.float32([[4.0], [2.0]]))
    updated = quantization.update_dictionary(
        start, jnp.float32([[3.0], [5.0]]), jnp.int32([0, 0]), decay=0.75
    )
    np.testing.assert_allclose(updated.counts, [0.75 * 4 + 0.25 * 2, 0.75 * 2])
    np.testing.assert_allclose(updated.sums, [[0.75 * 4 + 0.25 * 8], [0.75 * 2]])


def test_an_unused_code_stays_finite():
    codebook = quantization.dictionary_codebook(
        Dictionary(jnp.float32([5.0, 0.0]), jnp.float32([[10.0], [0.0]]))
    )
    np.testing.assert_allclose(codebook, [[2.0], [0.0]], rtol=1e-4)


def test_dead_codes_are_placed_on_vectors_of_the_batch_and_no_other_moves():
    dictionary = Dictionary(jnp.float32([0.01, 3.0, 0.02]), jnp.float32([[9.0], [6.0], [9.0]]))
    z, order = jnp.float32([[10.0], [20.0], [30.0]]), jnp.float32([0.9, 0.1, 0.5])
    restarted, dead = quantization.restart_dead(dictionary, z, order, least=0.5)
    assert dead.tolist() == [True, False, True]
    np.testing.assert_allclose(
        quantization.dictionary_codebook(restarted, smoothing=0.0), [[20.0], [2.0], [30.0]]
    )
    np.testing.assert_allclose(restarted.counts, [1.0, 3.0, 1.0])


def test_more_dead_codes_than_vectors_share_them():
    dictionary = quantization.make_dictionary(jnp.zeros((5, 1)))
    restarted, dead = quantization.restart_dead(
        dictionary, jnp.float32([[1.0], [2.0]]), jnp.float32([0, 1]), least=2.0
    )
    assert dead.all()
    np.testing.assert_allclose(
        quantization.dictionary_codebook(restarted)[:, 0], [1, 2, 1, 2, 1], rtol=1e-4
    )


@pytest.mark.parametrize(
    ("counts", "expected"), [([7, 0, 0, 0], 1.0), ([2, 2, 2, 2], 4.0), ([1, 1, 0, 0], 2.0)]
)
def test_perplexity_is_the_number_of_codes_that_evenly_used_would_say_as_much(counts, expected):
    assert quantization.perplexity(jnp.int32(counts)) == pytest.approx(expected)


def test_usage_counts_every_index():
    index = RNG.integers(0, 7, (4, 5, 6))
    np.testing.assert_array_equal(
        quantization.usage(jnp.asarray(index), 9), np.bincount(index.ravel(), minlength=9)
    )
