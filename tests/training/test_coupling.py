"""Noise paired with images by mini-batch optimal transport; the oracle is SciPy's assignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from ddpm_jax.diffusion.chain import continuous_chain
from ddpm_jax.diffusion.interpolants import FLOW
from ddpm_jax.diffusion.losses import make_loss
from ddpm_jax.diffusion.mixture import make_mixture, sample
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.config import default_config
from ddpm_jax.experiments.config_checks import check_config
from ddpm_jax.randomness import base_key, example_keys, normal
from ddpm_jax.training.coupling import couple, transport
from ddpm_jax.training.objective import Drawing, diffusion_objective


def squared_distances(x_0, eps):
    x_0, eps = (np.float64(of).reshape(len(of), 1, -1) for of in (x_0, eps))
    return np.square(x_0 - eps.swapaxes(0, 1)).sum(-1)


@pytest.mark.parametrize("count", [1, 2, 37])
def test_pairs_are_those_of_scipy(count):
    x_0, eps = np.random.default_rng(count).normal(size=(2, count, 3, 2, 1)).astype(np.float32)
    _, best = linear_sum_assignment(squared_distances(x_0, eps))
    found = jax.jit(transport)(0.3 * x_0 + 2, eps)  # neither scale nor shift changes the best pairs
    np.testing.assert_array_equal(found, best)
    np.testing.assert_array_equal(couple("ot", x_0, eps), eps[best])
    assert couple("independent", x_0, eps) is eps


@pytest.mark.full
def test_the_objective_pairs_the_noise_it_draws_and_leaves_images_and_labels():
    """A network of zeros has the loss ‖ε - x_0‖² / D of the pairs."""
    process = make_process(continuous_chain(FLOW, 1000), "velocity")
    objectives = {
        coupling: diffusion_objective(
            lambda params, x, *others: jnp.zeros_like(x),
            process,
            make_loss("simple", variance=process.variance),
            Drawing(flip=False, coupling=coupling),
            timestep_sampling="uniform",
            log_sigma=lambda u: jnp.log(u),
        )
        for coupling in ("independent", "ot")
    }
    x_0, index = 0.5 * jax.random.normal(base_key(1), (16, 2, 3, 1)), 100 + jnp.arange(16)
    eps = normal(example_keys(base_key(0), "eps", index), x_0.shape[1:])
    pairs = squared_distances(x_0, eps) / x_0[0].size
    rows, best = linear_sum_assignment(pairs)
    for coupling, partner in (("independent", rows), ("ot", best)):
        loss, _ = jax.jit(objectives[coupling].loss)({}, (), (), {"x_0": x_0}, base_key(0), index)
        np.testing.assert_allclose(loss, pairs[rows, partner], rtol=1e-5)


@pytest.mark.full
def test_paths_of_pairs_by_transport_cross_less():
    """E Var(ε - x_0 | x_τ), 0 for straight paths, for pairs in batches of 64 on a line.

    Of independent pairs it is known: the velocity of a Gaussian given x_τ is Gaussian.
    """
    mixture = make_mixture([0.4, 0.6], [[-1.0], [0.7]], [0.01, 0.04])
    x_0 = sample(mixture, jax.random.split(base_key(0), 64 * 200)).reshape(200, 64, 1)
    eps = jax.random.normal(base_key(1), x_0.shape)
    transported = jax.jit(jax.vmap(lambda x, e: couple("ot", x, e)))(x_0, eps)

    def variance(x_0, eps, time=0.5):
        x, u = np.ravel((1 - time) * x_0 + time * eps), np.ravel(eps - x_0)
        parts = np.array_split(u[np.argsort(x)], 160)  # 80 neighbours each
        return np.mean([part.var(ddof=1) for part in parts])

    gaussian = 0.3 * eps[::-1]
    assert variance(gaussian, eps) == pytest.approx(0.09 / (0.25 * 0.09 + 0.25), rel=0.05)
    np.testing.assert_array_equal(np.sort(transported, axis=1), np.sort(eps, axis=1))
    assert variance(x_0, transported) < 0.05 * variance(x_0, eps)


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="Unknown coupling 'sinkhorn'"):
        couple("sinkhorn", jnp.zeros((2, 1)), jnp.zeros((2, 1)))
    config = default_config()
    config.diffusion.coupling = "ot"
    with pytest.raises(UsageError, match=r"coupling is 'ot', but a chain of T steps has none"):
        check_config(config)
