"""How far a model of few evaluations leads from the end of another's probability flow."""

import functools
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


def one_evaluation(chain: Chain, sigma: float) -> Sampler:
    """Return the sampler that takes the x_0 of one evaluation at σ."""
    return make_sampler("ddim", chain, spacing=chain.times_from_sigmas(np.array([sigma])))


class FlowMap(NamedTuple):
    """A model that leads from a level of its process to clean data."""

    chain: Chain
    denoiser: OnSchedule
    # (chain, σ) -> how it leads from there
    sampler: Callable[[Chain, float], Sampler] = one_evaluation


class FlowDistances(NamedTuple):
    """Root mean square distances to the end of the teacher's flow, in the units of x_0, [K]."""

    sigma: np.ndarray  # the levels
    student: np.ndarray  # of the end that the student leads to
    teacher: np.ndarray  # of the teacher's own x_0, by one evaluation


def flow_distances(
    student: FlowMap,
    teacher: FlowMap,
    x_0: chex.Array,
    eps: chex.Array,
    sigmas: Sequence[float],
) -> FlowDistances:
    """Compare where a student leads from a level with where the teacher's flow does.

    The images x_0 + σ ε are the same for both. The flow is solved by Heun's method over `STEPS`
    levels on Karras's grid, whose own error is of the second order.

    Args:
      student: the model of few evaluations.
      teacher: the model that it was made of; its own sampler is that of one evaluation.
      x_0: [B, H, W, C], as the models see images.
      eps: standard normal noise of the shape of x_0.
      sigmas: the levels, [K], within both processes.
    """
    by_student, by_teacher = (_walker(model.denoiser) for model in (student, teacher))

    def distances(sigma: float) -> list[float]:
        x_t = _noisy(teacher.chain, sigma, x_0, eps)
        wanted = by_teacher(_solver(teacher.chain, sigma), x_t)
        of_teacher = by_teacher(one_evaluation(teacher.chain, sigma), x_t)
        x_t = _noisy(student.chain, sigma, x_0, eps)
        of_student = by_student(student.sampler(student.chain, sigma), x_t)
        return [_distance(x, wanted) for x in (of_student, of_teacher)]

    found = [distances(sigma) for sigma in sigmas]
    return FlowDistances(np.asarray(sigmas, np.float64), *np.transpose(found))


def _walker(denoiser: OnSchedule) -> Callable[[Sampler, chex.Array], chex.Array]:
    """Return (sampler, x_t) -> the clean data it leads to; samplers of one kind share a program."""

    @functools.partial(jax.jit, static_argnames=("init", "step", "evaluations"))
    def walk(schedule, rows, x_t, **how):
        sampler = Sampler(schedule, rows, draws=0, **how)
        return sample(denoiser(schedule), sampler, x_t).x_0

    def lead(sampler: Sampler, x_t: chex.Array) -> chex.Array:
        how = {name: getattr(sampler, name) for name in ("init", "step", "evaluations")}
        return walk(sampler.schedule, sampler.rows, x_t, **how)

    return lead


def _noisy(chain: Chain, sigma: float, x_0: chex.Array, eps: chex.Array) -> chex.Array:
    level = chain.at(chain.times_from_sigmas(np.array([sigma])))
    return q_sample(level, x_0, jnp.zeros(len(x_0), jnp.int32), eps)


def _solver(chain: Chain, sigma: float) -> Sampler:
    """Return Heun's method from σ to clean data."""
    low = np.exp(chain.log_sigmas[0])
    ends = np.array([low, sigma]) ** (1 / KARRAS_RHO)
    times = chain.times_from_sigmas(np.linspace(*ends, STEPS) ** KARRAS_RHO)
    return make_sampler("heun", chain, steps=STEPS, spacing=times)


def _distance(found: chex.Array, wanted: chex.Array) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(found) - np.asarray(wanted)))))
