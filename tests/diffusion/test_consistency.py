"""Consistency tuning against the reference code of ECT; see goldens/README.md."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.consistency import consistency_loss, earlier_sigma
from tests.conftest import GOLDENS

CASES = {  # k, c; mean and standard deviation of ln σ
    "sigmoid": (8.0, 0.0, -1.1, 2.0),
    "const": (0.0, 0.0, -1.1, 2.0),
    "sigmoid_huber": (8.0, 0.06, -0.8, 1.6),
}
# float32 against float64 of the reference itself, at each stage: two close denoisers' distance is
# divided by t - r
ERRORS = {
    "sigmoid": {0: 2.4e-6, 1: 2.4e-6, 3: 1.3e-6, 7: 1.9e-4},
    "const": {0: 9.7e-6, 1: 1.2e-5, 3: 1.2e-4, 7: 1.5e-3},
    "sigmoid_huber": {0: 2.6e-7, 1: 2.6e-7, 3: 1.9e-6, 7: 6.2e-6},
}
STAGES = (0, 1, 3, 7)
every_case = pytest.mark.parametrize("case", CASES)
every_stage = pytest.mark.parametrize("stage", STAGES)


@pytest.fixture(scope="module")
def goldens():
    return dict(np.load(GOLDENS / "edm" / "consistency_tuning.npz"))


def _edm(x, sigma):
    """EDM's denoiser round tanh(x / 2 + c / 10), for data of standard deviation 0.5."""
    total = sigma**2 + 0.25
    output = np.tanh(0.5 * x / np.sqrt(total) + 0.1 * np.log(sigma) / 4)
    return 0.25 / total * x + sigma * 0.5 / np.sqrt(total) * output


@every_case
@every_stage
def test_the_earlier_level_is_that_of_the_reference(goldens, case, stage):
    strength = CASES[case][0]
    if case == "const":
        strength = 0.0
    found = jax.jit(earlier_sigma)(goldens["t"], stage, strength=strength)
    np.testing.assert_allclose(found, goldens[f"{case}/r_stage_{stage}"], rtol=2e-6, atol=2e-7)


@every_case
@every_stage
def test_the_loss_is_that_of_the_reference(goldens, case, stage):
    strength, huber, mean, std = CASES[case]
    given = {name: goldens[f"{case}/{name}"].astype(np.float64) for name in ("images", "noise")}
    sigma = np.exp(mean + std * goldens[f"{case}/draw"].astype(np.float64))
    np.testing.assert_allclose(sigma, goldens[f"{case}/t"], rtol=1e-6)
    earlier = np.asarray(earlier_sigma(sigma.astype(np.float32), stage, strength=strength))
    np.testing.assert_allclose(
        earlier, goldens[f"{case}/loss_r_stage_{stage}"], rtol=2e-6, atol=2e-7
    )
    found = _edm(given["images"] + sigma * given["noise"], sigma)
    safe = np.where(earlier > 0, earlier, 1.0)
    wanted = np.where(
        earlier > 0, _edm(given["images"] + earlier * given["noise"], safe), given["images"]
    )
    loss = consistency_loss(
        *(jnp.asarray(a, jnp.float32) for a in (found, wanted)),
        *(jnp.asarray(a.ravel(), jnp.float32) for a in (sigma, earlier)),
        huber=huber,
    )
    theirs = goldens[f"{case}/loss_stage_{stage}"]
    assert np.max(np.abs(loss - theirs) / (1 + np.abs(theirs))) < 4 * ERRORS[case][stage]


@pytest.mark.parametrize("huber", [0.0, 0.1])
def test_equal_images_cost_nothing_and_have_a_gradient(huber):
    x = jnp.ones((2, 3))
    sigma, earlier = jnp.full(2, 2.0), jnp.ones(2)

    def cost(found):
        return jnp.sum(consistency_loss(found, x, sigma, earlier, huber=huber))

    value, gradient = jax.value_and_grad(cost)(x)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(x))


def test_what_is_wanted_gets_no_gradient():
    def cost(x):
        return jnp.sum(consistency_loss(2 * x, x, jnp.ones(1), jnp.zeros(1)))

    assert jax.grad(cost)(jnp.array([[3.0]])) == 2.0  # of |2x - 3| alone
