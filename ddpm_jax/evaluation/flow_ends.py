"""How far one evaluation of a denoiser leads from the end of another's probability flow."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.gaussian import q_sample
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.samplers.loop import Sampler, sample
from ddpm_jax.samplers.registry import make_sampler
from ddpm_jax.samplers.spacing import KARRAS_RHO

STEPS = 32  # of Heun's method from a level to clean data

# (schedule, perhaps traced) -> the denoiser on it
OnSchedule = Callable[[Schedule], Denoiser]


class FlowMap(NamedTuple):
    """A model of x_0 at any level of its process."""

    chain: Chain
    denoiser: OnSchedule


class FlowDistances(NamedTuple):
    """Root mean square distances to the end of the teacher's flow, in the units of x_0, [K]."""

    sigma: np.ndarray  # the levels
    student: np.ndarray  # of the student's x_0, by one evaluation
    teacher: np.ndarray  # of the teacher's own x_0, by one evaluation


def flow_distances(
    student: FlowMap,
    teacher: FlowMap,
    x_0: chex.Array,
    eps: chex.Array,
    sigmas: Sequence[float],
) -> FlowDistances:
    """Compare one evaluation at a level with the teacher's flow from there to clean data.

    The images x_0 + σ ε are the same for both. The flow is solved by Heun's method over `STEPS`
    levels on Karras's grid, whose own error is of the second order.

    Args:
      student: the model of few evaluations.
      teacher: the model that it was made of.
      x_0: [B, H, W, C], as the models see images.
      eps: standard normal noise of the shape of x_0.
      sigmas: the levels, [K], within both processes.
    """

    solver = _solver(teacher.chain, sigmas[0])
    once, own = (
        jax.jit(lambda *args, model=model: _once(model, *args)) for model in (student, teacher)
    )

    @jax.jit
    def end(schedule, rows, x_t):
        walked = solver._replace(schedule=schedule, rows=rows)
        return sample(teacher.denoiser(schedule), walked, x_t).x_0

    found = []
    for sigma in sigmas:
        walked = _solver(teacher.chain, sigma)
        x_t, of_student = once(_level(student.chain, sigma), x_0, eps)
        wanted = end(walked.schedule, walked.rows, x_t)
        _, of_teacher = own(_level(teacher.chain, sigma), x_0, eps)
        found.append([_distance(x, wanted) for x in (of_student, of_teacher)])
    return FlowDistances(np.asarray(sigmas, np.float64), *np.transpose(found))


def _once(model: FlowMap, schedule: Schedule, x_0: chex.Array, eps: chex.Array):
    """Return x_t at the one level of the schedule, and the model's x_0 there."""
    t = jnp.zeros(len(x_0), jnp.int32)
    x_t = q_sample(schedule, x_0, t, eps)
    return x_t, model.denoiser(schedule)(x_t, t).x_0


def _level(chain: Chain, sigma: float) -> Schedule:
    return chain.at(chain.times_from_sigmas(np.array([sigma])))


def _solver(chain: Chain, sigma: float) -> Sampler:
    """Return Heun's method from σ to clean data."""
    low = np.exp(chain.log_sigmas[0])
    ends = np.array([low, sigma]) ** (1 / KARRAS_RHO)
    times = chain.times_from_sigmas(np.linspace(*ends, STEPS) ** KARRAS_RHO)
    return make_sampler("heun", chain, steps=STEPS, spacing=times)


def _distance(found: chex.Array, wanted: chex.Array) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(found) - np.asarray(wanted)))))
