"""The objective of a process in continuous time: the levels drawn, and the network's inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import continuous_chain
from ddpm_jax.diffusion.interpolants import INTERPOLANTS
from ddpm_jax.diffusion.level_draws import level_distribution
from ddpm_jax.diffusion.losses import make_loss
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import base_key
from ddpm_jax.training.objective import Drawing, diffusion_objective

COUNT = 4000
# the standard error of a mean of COUNT values of standard deviation 1, and of their mean square
MEAN, SQUARE = 1 / np.sqrt(COUNT), np.sqrt(2 / COUNT)


def objective(apply, process, prediction, levels, sampling="uniform"):
    made = make_process(continuous_chain(INTERPOLANTS[process], 1000), prediction)
    return diffusion_objective(
        apply,
        made,
        make_loss("simple", variance=made.variance),
        Drawing(flip=False),
        timestep_sampling=sampling,
        log_sigma=level_distribution(levels, made.chain),
    )


def evaluate(made, x_0, index=None):
    index = jnp.arange(len(x_0)) if index is None else index
    return made.loss({}, (), (), {"x_0": x_0}, base_key(0), index)


def seen_by_a_network_of_zeros(process, prediction, levels):
    """What it is given at COUNT draws of data N(0, 0.5²), [COUNT] each, and its losses."""

    @jax.jit
    def evaluated():
        seen = []

        def apply(params, x, time, condition, keys):
            seen.append((x, time))
            return jnp.zeros_like(x)

        x_0 = 0.5 * jax.random.normal(base_key(1), (COUNT, 1, 1, 1))
        return evaluate(objective(apply, process, prediction, levels), x_0), seen[0]

    (loss, aux), (x, time) = jax.device_get(evaluated())
    return np.ravel(x), time, loss, aux.t


def test_edm_sees_and_predicts_numbers_of_variance_one_at_lognormal_levels():
    """Karras et al. 2022, appendix B.6; ln σ ~ N(-1.2, 1.2²), and the network gets ln σ / 4."""
    x, time, loss, t = seen_by_a_network_of_zeros("edm", "edm", "lognormal")
    assert np.mean(x**2) == pytest.approx(1, abs=5 * SQUARE)
    assert np.mean(loss) == pytest.approx(1, abs=5 * SQUARE)
    assert np.mean(4 * time) == pytest.approx(-1.2, abs=5 * 1.2 * MEAN)
    assert np.std(4 * time) == pytest.approx(1.2, rel=5 * SQUARE / 2)
    # t, by which losses are recorded, is the rank of the level
    assert np.mean(np.diff(t[np.argsort(time)]) >= 0) == 1
    assert np.mean(t) == pytest.approx(500, abs=5 * 1000 / np.sqrt(12) * MEAN)


def test_a_flow_sees_its_own_x_at_uniform_times():
    """x = (1-τ) x_0 + τ ε has variance (1-τ)²/4 + τ², and ε - x_0 has 1.25."""
    x, time, loss, _ = seen_by_a_network_of_zeros("flow", "velocity", "uniform")
    assert np.mean(time) == pytest.approx(0.5, abs=5 / np.sqrt(12) * MEAN)
    standardised = x / np.sqrt((1 - time) ** 2 / 4 + time**2)
    assert np.mean(standardised**2) == pytest.approx(1, abs=5 * SQUARE)
    assert np.mean(loss) == pytest.approx(1.25, abs=5 * 1.25 * SQUARE)


@pytest.mark.parametrize("sampling", ["uniform", "antithetic"])
def test_an_example_depends_on_its_index_and_not_on_its_batch(sampling):
    made = objective(lambda params, x, time, condition, keys: jnp.tanh(x), "vp", "eps", "uniform")
    made = made._replace(loss=jax.jit(made.loss))
    x_0 = jax.random.normal(base_key(2), (8, 2, 2, 1))
    whole, aux = evaluate(made, x_0)
    part, of_part = evaluate(made, x_0[4:], jnp.arange(4, 8))
    np.testing.assert_array_equal(part, whole[4:])
    np.testing.assert_array_equal(of_part.t, aux.t[4:])


def test_importance_sampling_is_of_a_chain():
    with pytest.raises(UsageError, match=r"over the T steps.*choose uniform, antithetic or"):
        objective(None, "edm", "edm", "lognormal", sampling="importance")
