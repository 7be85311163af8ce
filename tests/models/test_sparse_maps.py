"""Sparse maps along an axis against products with the matrix, in every mode of differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.sparse_maps import apply_along, sparse

# rows of three, one and no non-zeros, a column of none
MATRIX = np.array([[1, 0, -2, 0.5], [0, 0, 3, 0], [0, 0, 0, 0]])
X = np.random.default_rng(0).normal(size=(2, 4, 3))


def product(x, axis, matrix=MATRIX):
    return np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)


def test_a_map_is_the_product_with_its_matrix_along_any_axis():
    with jax.enable_x64(True):
        for axis in range(3):
            x = np.moveaxis(X, 1, axis)
            np.testing.assert_allclose(
                apply_along(sparse(MATRIX), jnp.asarray(x), axis), product(x, axis), atol=1e-15
            )


def test_its_derivatives_are_the_map_and_that_of_the_transposed_matrix():
    def mapped(x):
        return apply_along(sparse(MATRIX), x, 1)

    with jax.enable_x64(True):
        y_bar = np.cos(product(X, 1))
        x, y = jnp.asarray(X), jnp.asarray(y_bar)
        np.testing.assert_allclose(jax.jvp(mapped, (x,), (x**2,))[1], product(X**2, 1), atol=1e-15)
        np.testing.assert_allclose(
            jax.vjp(mapped, x)[1](y)[0], product(y_bar, 1, MATRIX.T), atol=1e-15
        )
        # twice transposed, and for each example by itself
        twice = jax.linear_transpose(lambda y: jax.linear_transpose(mapped, x)(y)[0], y)
        np.testing.assert_allclose(twice(x)[0], product(X, 1), atol=1e-15)
        of_examples = jax.vmap(lambda x: apply_along(sparse(MATRIX), x, 1), in_axes=2, out_axes=2)
        np.testing.assert_allclose(of_examples(x), product(X, 1), atol=1e-15)


def test_neither_it_nor_its_transpose_is_a_scatter():
    # XLA for CPU makes of a scatter a slow loop over single elements
    def gradient(x):
        return jax.vjp(lambda x: apply_along(sparse(MATRIX), x, 1), x)[1](x[:, :3])

    assert "scatter" not in jax.jit(gradient).lower(jnp.asarray(X, jnp.float32)).as_text()


def test_the_matrix_must_have_a_column_for_every_element():
    with pytest.raises(AssertionError):
        apply_along(sparse(MATRIX), jnp.zeros((2, 5)), 1)
