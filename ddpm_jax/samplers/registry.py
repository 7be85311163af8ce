"""SAMPLERS: every sampler by name, and `make_sampler`, which checks its arguments.

A sampler's maker is a function (chain, times, *, options) -> `Sampler`; its options are its keyword
arguments. Adding a sampler: its table and step in a file here, a line below, a line in
tests/samplers/test_conformance.py.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.diffusion.chain import Chain, GivenLevels, check_chain
from ddpm_jax.diffusion.interpolants import COSINE, FLOW, Method
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.randomness import check_precision
from ddpm_jax.samplers.adams import lms
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.consistency import consistency
from ddpm_jax.samplers.ddim import ddim, euler, euler_ancestral
from ddpm_jax.samplers.diffusers_levels import SchedulerOptions, diffusers_levels
from ddpm_jax.samplers.dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from ddpm_jax.samplers.interpolant_sde import interpolant_sde
from ddpm_jax.samplers.langevin import predictor_corrector
from ddpm_jax.samplers.linear import from_pure_noise
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.samplers.mean_flow import mean_flow
from ddpm_jax.samplers.pndm import plms, pndm
from ddpm_jax.samplers.runge_kutta import OWN, dpm2, edm, heun, path_of, runge_kutta
from ddpm_jax.samplers.spacing import space
from ddpm_jax.samplers.unipc import unipc


def _ancestral(chain: Chain, times: np.ndarray, *, dtype: DTypeLike = np.float32) -> Sampler:
    check_chain(chain)
    return ancestral(chain.at(times, dtype=dtype))


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ancestral": _ancestral,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm2": dpm2,
    "edm": edm,
    "runge_kutta": runge_kutta,
    "interpolant_sde": interpolant_sde,
    "lms": lms,
    "plms": plms,
    "pndm": pndm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "unipc": unipc,
    "predictor_corrector": predictor_corrector,
    "consistency": consistency,
    "mean_flow": mean_flow,
}
ELSEWHERE = {  # small letters and digits of other libraries' names -> ours
    "ddpm": "ancestral",
    "ddpmancestral": "ancestral",
    "eulera": "euler_ancestral",
    "dpmpp": "dpmpp_2m",
    "dpmsolver": "dpmpp_2m",
    "dpmsolverpp": "dpmpp_2m",
    "dpmsolver2": "dpmpp_2m",
    "dpmsolver3": "dpmpp_3m",
    "dpmppsde": "dpmpp_2m_sde",
    "dpmsolversde": "dpmpp_2m_sde",
    "dpmsolverppsde": "dpmpp_2m_sde",
    "sdedpmsolverpp": "dpmpp_2m_sde",
    "pc": "predictor_corrector",
    "scoresdeve": "predictor_corrector",
    "langevin": "predictor_corrector",
    "sit": "interpolant_sde",
    "eulermaruyama": "interpolant_sde",
}
# What decides the levels: the chain alone, or a scheduler of diffusers, here as its class has it.
LEVELS = {"exact": None, "diffusers": SchedulerOptions()}
# Samplers with a first step where x_T holds nothing of x_0, so that neither σ nor λ is finite; to
# the others `from_pure_noise` gives that of DDIM.
FROM_PURE_NOISE = ("ancestral", "ddim", "euler", "predictor_corrector", "mean_flow")


def find(name: str) -> Callable[..., Sampler]:
    """Return the maker of a sampler.

    Raises:
      UsageError: an unknown sampler; the message names ours where it is another library's name for
        one.
    """
    return choose("sampler", name, SAMPLERS, hint=_known_as(name))


def _known_as(name: str) -> str:
    """Return a hint for another library's name of one of our samplers; "" where it is unknown.

    For "DPM++ 2M Karras": " Did you mean 'dpmpp_2m' with the spacing 'karras'?"
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp"))
    plain = re.sub(r"(scheduler|discrete|multistep|singlestep)", "", plain)
    spacing = next(
        (spacing for spacing in ("karras", "exponential") if plain.endswith(spacing)), None
    )
    plain = plain.removesuffix(spacing or "").removeprefix("sample")
    ours = {own.replace("_", ""): own for own in SAMPLERS} | ELSEWHERE
    found = ours.get(plain) or ours.get(plain.removeprefix("k"))
    return (
        f" Did you mean {found!r}{f' with the spacing {spacing!r}' if spacing else ''}?"
        if found
        else ""
    )


def default_options(name: str) -> dict[str, Any]:
    """Return the options of a sampler and their defaults; `dtype` is not one.

    Raises:
      UsageError: an unknown sampler.
    """
    parameters = inspect.signature(find(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY and p.name != "dtype"}


def make_sampler(
    name: str,
    chain: Chain,
    *,
    steps: int | None = None,
    spacing: str | Sequence[float] | None = None,
    options: Mapping[str, Any] = {},
    levels: str | SchedulerOptions = "exact",
    dtype: DTypeLike = np.float32,
) -> Sampler:
    """Return the sampler `name` over N of the chain's noise levels.

    Args:
      name: a key of `SAMPLERS`.
      chain: the process.
      steps: N, 1..T; None where the spacing determines it: a list of times, or sections.
      spacing: see `spacing.space`; None for linspace, of a process in continuous time for that of
        its method, with diffusers' levels for theirs.
      options: for this sampler: `default_options`.
      levels: "exact", or "diffusers" for times, σ and ends as diffusers' scheduler of this method
        has them by default; its `SchedulerOptions` for others. x_T is then noise times the
        sampler's `start_scale`.
      dtype: of the tables, and so of x_T and of the computation. float64 needs JAX to compute in
        it.

    Raises:
      UsageError: an unknown sampler or spacing, steps out of range, an option that this sampler
        does not have or a value it cannot take, or float64 where JAX computes in float32.
    """
    check_precision(dtype, "The sampler's table")
    known = default_options(name)
    for option in options:
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise UsageError(f"The sampler {name} has no option {option}: {has}.")
    chain, times = walked(name, chain, steps=steps, spacing=spacing, levels=levels)
    if chain.at(times).alphas_bar[-1] > 0 or _begins_without_signal(name, chain, options):
        sampler = SAMPLERS[name](chain, times, **options, dtype=dtype)
    elif len(times) == 1:
        sampler = ddim(chain, times, dtype=dtype)
    else:
        rest = SAMPLERS[name](chain, times[:-1], **options, dtype=dtype)
        sampler = from_pure_noise(chain, times, rest)
    if isinstance(chain, GivenLevels):
        return sampler._replace(start_scale=chain.start_scale)
    return sampler


def own_sampler(chain: Chain, method: Method | None, *, steps: int) -> Sampler:
    """Return the sampler of a model's method, if it has one, else the ancestral sampler.

    A method with a list of levels has its own number of steps.

    Raises:
      UsageError: steps out of range.
    """
    if method is None:
        return make_sampler("ancestral", chain, steps=steps)
    if not isinstance(method.spacing, str):
        steps = method.steps
    return make_sampler(method.sampler, chain, steps=steps, spacing=method.spacing)


def _begins_without_signal(name: str, chain: Chain, options: Mapping[str, Any]) -> bool:
    """Return whether a sampler has its own step from a level without signal."""
    in_time = name == "runge_kutta" and options.get("scaled", True)
    if in_time or (name == "interpolant_sde" and options.get("diffusion") != "sbdm"):
        # In the time of a path that ends there, every step is finite.
        return path_of(chain, options.get("path", OWN)) in (FLOW, COSINE)
    return name in FROM_PURE_NOISE


def walked(
    name: str,
    chain: Chain,
    *,
    steps: int | None,
    spacing: str | Sequence[float] | None,
    levels: str | SchedulerOptions,
) -> tuple[Chain, np.ndarray]:
    """Return the chain that a sampler walks, which has its levels, and its times [N], increasing.

    Arguments and errors are those of `make_sampler`.
    """
    check_chain(chain)
    scheduler = choose("kind of levels", levels, LEVELS) if isinstance(levels, str) else levels
    if scheduler is None:
        default = "linspace" if chain.method is None else chain.method.spacing
        return chain, space(chain, default if spacing is None else spacing, steps)
    if not (spacing is None or isinstance(spacing, str)):
        raise UsageError("diffusers' levels have no list of timesteps: leave levels or it out.")
    if steps is None:
        raise UsageError("steps is missing: diffusers' levels need their number.")
    chain = diffusers_levels(name, chain, steps, spacing=spacing, scheduler=scheduler)
    return chain, np.arange(steps)
