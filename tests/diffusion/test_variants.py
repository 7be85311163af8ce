"""Pure functions agree compiled and not, on host and device arrays, and mapped."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import parameterized

from ddpm_jax.diffusion import gaussian, likelihood, losses, parameterization, timesteps
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process

pytestmark = pytest.mark.full

CHAIN = Chain(np.linspace(0.05, 0.3, 12))
SCHEDULE, PROCESS = CHAIN.at(), make_process(CHAIN, "eps", "learned_range")
RANDOM = np.random.default_rng(0)
x_0, x_t, eps = RANDOM.uniform(-1, 1, (3, 2, 2, 2, 3)).astype(np.float32)
t = np.array([0, 7], np.int32)
PREDICTION = parameterization.Prediction(x_0, eps, mean=x_t, log_variance=np.full_like(x_0, -4.0))
HISTORY = timesteps.LossHistory(RANDOM.random((12, 10), np.float32), np.full(12, 10, np.int32))


def interpret(schedule, output, x_t, t):
    return make_process(CHAIN, "v", "learned_range").interpret(schedule, output, x_t, t)


def train(schedule, x_0, t, eps):
    def network(x, time):
        return jnp.concatenate([x, jnp.sin(x)], axis=-1)

    return losses.training_losses(
        network,
        schedule,
        x_0,
        t,
        eps,
        process=PROCESS,
        loss=losses.make_loss("hybrid", "min_snr", variance=PROCESS.variance),
    )


FUNCTIONS = {
    "q_sample": (gaussian.q_sample, (SCHEDULE, x_0, t, eps)),
    "q_step": (gaussian.q_step, (SCHEDULE, x_0, t)),
    "q_mean_variance": (gaussian.q_mean_variance, (SCHEDULE, x_0, t)),
    "q_posterior": (gaussian.q_posterior, (SCHEDULE, x_0, x_t, t)),
    "interpret": (interpret, (SCHEDULE, np.concatenate([eps, x_0], axis=-1), x_t, t)),
    "bound_term": (likelihood.bound_term, (SCHEDULE, PREDICTION, x_0, x_t, t)),
    "prior_term": (likelihood.prior_term, (SCHEDULE, x_0)),
    "training_losses": (train, (SCHEDULE, x_0, t, eps)),
    "importance_probabilities": (timesteps.importance_probabilities, (HISTORY,)),
    "update_history": (
        timesteps.update_history,
        (HISTORY, np.array([3, 3, 5], np.int32), np.ones(3, np.float32)),
    ),
}


class VariantsTest(chex.TestCase):
    """The test case that chex's variants need, with `pmap` on one device not skipped."""

    def setUp(self):
        super().setUp()
        flag = flags.FLAGS["chex_skip_pmap_variant_if_single_device"]
        self.addCleanup(setattr, flag, "value", flag.value)
        flag.value = False

    @chex.all_variants
    @parameterized.named_parameters(*((name, name) for name in FUNCTIONS))
    def test_function(self, name):
        function, arguments = FUNCTIONS[name]
        expected = jax.tree.map(np.asarray, function(*arguments))
        # compilation fuses products and sums: a rounding or two of numbers that partly cancel
        chex.assert_trees_all_close(
            self.variant(function)(*arguments), expected, rtol=1e-5, atol=1e-6
        )
        chex.assert_tree_all_finite(expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_float32(name):
    function, arguments = FUNCTIONS[name]
    for leaf in jax.tree.leaves(function(*arguments)):
        assert leaf.dtype == (
            jnp.int32 if name == "update_history" and leaf.ndim == 1 else jnp.float32
        )
