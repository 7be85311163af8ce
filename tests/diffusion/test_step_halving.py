"""Step halving on data whose denoiser is known: a student of these targets is the whole chain."""

import jax
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain, continuous_chain
from ddpm_jax.diffusion.clipping import CLIPPINGS
from ddpm_jax.diffusion.denoiser import from_function
from ddpm_jax.diffusion.interpolants import EDM, FLOW
from ddpm_jax.diffusion.mixture import exact_denoiser, make_mixture
from ddpm_jax.diffusion.parameterization import Prediction, eps_from_x_0
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.diffusion.step_halving import halved_x_0
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler
from ddpm_jax.samplers.spacing import trailing_from

CHAINS = {
    "chain": lambda: Chain(make_betas("linear", 1000)),
    "flow": lambda: continuous_chain(FLOW, 1000),  # from pure noise on
    "edm": lambda: continuous_chain(EDM, 1000),
}


@pytest.mark.parametrize(
    ("kind", "clip"), [*((kind, "none") for kind in CHAINS), ("chain", "static")]
)
def test_a_student_of_these_targets_walks_two_steps_as_one(kind, clip):
    chain, mixture = CHAINS[kind](), make_mixture([0.5, 0.5], [[-1, 0.3], [0.8, -0.2]], [0.05, 0.1])
    times = trailing_from(chain, 8, np.inf)
    of_teacher, of_student = (
        make_sampler("ddim", chain, spacing=levels) for levels in (times, times[1::2])
    )
    teacher = CLIPPINGS[clip](exact_denoiser(mixture, of_teacher.schedule, variance="fixed_small"))

    def predict(x_t, t):
        x_0 = halved_x_0(teacher, x_t, 2 * t + 1, 2 * t, 2 * t - 1)
        return Prediction(x_0, eps_from_x_0(of_student.schedule, x_t, t, x_0), x_0, x_0)

    student = from_function(of_student.schedule, predict)
    x_T = jax.random.normal(jax.random.key(0), (16, 2))
    wanted = jax.jit(lambda x: sample(teacher, of_teacher, x, trajectory=True).frames_x_t)(x_T)
    found = jax.jit(lambda x: sample(student, of_student, x, trajectory=True).frames_x_t)(x_T)
    # float32: a step of a fine chain is a small difference of levels
    np.testing.assert_allclose(found, wanted[::2], rtol=0, atol=2e-5)


def test_every_second_level_is_that_of_half_as_many_steps():
    for make in CHAINS.values():
        chain = make()
        fine, coarse = (trailing_from(chain, steps, 5.0) for steps in (16, 8))
        np.testing.assert_allclose(fine[1::2], coarse, rtol=1e-12)
        assert float(chain.at(fine).sigma[-1]) == pytest.approx(5.0, rel=0.01)
