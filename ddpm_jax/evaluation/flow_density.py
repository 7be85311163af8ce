"""The density of a probability flow, and the flow as a code: encode, decode.

Belongs here: solving `diffusion.flow` with diffrax, and the divergence along a path. Does not: the
velocity (`diffusion.flow`), and images (`likelihood_ode`).

**Density.** Along a solution of dx/dt = f(x, t) the log-density changes by -div f dt (Chen et al.
2018, theorem 1), so that (Song et al. 2021, eq. 39)

    log p_start(x) = log N(x_T; 0, I) + ∫_start^end div f(x(t), t) dt,      x_T = x(end).

The divergence is the trace of a Jacobian, estimated with probes (`traces`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.flow import Flow

# evaluations of a step of Tsit5; the seventh is the first of the next one, tried again or not
STAGES = 6
METHOD = diffrax.Tsit5()
# in units of t, the first step tried at either end; if too long it is rejected like any other
FIRST_STEP = 0.1


class Solver(NamedTuple):
    """The tolerances of the ODE solver, Tsit5 (Tsitouras 2011) with adaptive steps.

    A step is accepted if its error is below atol + rtol |value|, root-mean-square over the
    dimensions of an example, and separately for the log-density in nats/dim, which would have no
    weight as one number among D.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 4096


SOLVER = Solver()


class Density(NamedTuple):
    """Log-densities of a batch."""

    log_prob: chex.Array  # float32 [B], nats
    x_T: chex.Array  # [B, *D], the end of each path
    num_evaluations: chex.Array  # int32 [B], of the velocity with all probes
    # bool [B], False where the solver gave up or met a number that is not finite
    solved: chex.Array


def log_density(
    flow: Flow, x: chex.Array, probes: chex.Array, *, solver: Solver = SOLVER
) -> Density:
    """Return log p_start(x), by the change of variables along the path of each example.

    Every example has its own step sizes, so that its result does not depend on the rest of the
    batch except for rounding.

    Args:
      flow: velocity, start and end.
      x: [B, *D].
      probes: [B, P, *D] from a function in `TRACES`; fixed along a path, so that the integrand is
        smooth.
      solver: tolerances.
    """
    chex.assert_equal_shape([x, probes[:, 0]])
    return jax.vmap(lambda x, probes: _example_log_density(flow, x, probes, solver))(x, probes)


def _example_log_density(flow: Flow, x: chex.Array, probes: chex.Array, solver: Solver) -> Density:
    """Return `log_density` of one x of shape *D, with probes [P, *D]."""
    path = begin(flow, x, probes, solver)
    return finish(flow, advance(flow, path, probes, solver, solver.max_steps))


class Path(NamedTuple):
    """The state of one example's ODE, which one dispatch passes to the next. t is a scalar."""

    t: chex.Array  # the current time
    t_next: chex.Array  # the end of the next step to try
    state: tuple[chex.Array, chex.Array]  # x [*D], the integral of the divergence so far by D
    solver_state: Any
    controller_state: Any
    num_steps: chex.Array  # int32, including rejected steps
    okay: chex.Array  # bool, False where the solver gave up


def ode_term(flow: Flow) -> diffrax.ODETerm:
    """Return d/dt of (x, log-density / D), with the probes [P, *D] as arguments."""

    def change(t, state, probes):
        def velocity(x):
            return flow.velocity(x[None], t[None])[0]

        # zᵀJ by reverse mode, one backward pass per probe, because the network's convolutions are
        # fast in a loop in that direction: on a CPU Jz by forward mode takes 27 times as long here.
        value, pull_back = jax.vjp(velocity, state[0])
        products = jax.vmap(lambda z: pull_back(z)[0])(probes)
        return value, jnp.mean(probes * products)

    return diffrax.ODETerm(change)


def begin(flow: Flow, x: chex.Array, probes: chex.Array, solver: Solver) -> Path:
    """Return the path of one x at its start."""
    term, state = ode_term(flow), (x, jnp.zeros((), x.dtype))
    start, end, step = (jnp.asarray(t, float) for t in (flow.start, flow.end, FIRST_STEP))
    order = METHOD.error_order(term)
    t_next, controller_state = _controller(solver).init(
        term, start, end, state, step, probes, METHOD.func, order
    )
    t_next = jnp.minimum(t_next, end)
    solver_state = METHOD.init(term, start, t_next, state, probes)
    return Path(start, t_next, state, solver_state, controller_state, jnp.int32(0), jnp.bool_(True))


def advance(
    flow: Flow, path: Path, probes: chex.Array, solver: Solver, steps: chex.Array | int
) -> Path:
    """Try up to `steps` further steps.

    This is `diffrax.diffeqsolve` in parts; that function does not return its next step.
    """
    term, end, controller = ode_term(flow), jnp.asarray(flow.end, path.t.dtype), _controller(solver)
    nearly = np.asarray(flow.end, path.t.dtype)
    # diffrax: a step that ends within 100 units in the last place of the end is one to the end
    for _ in range(100):
        nearly = np.nextafter(nearly, -np.inf, dtype=nearly.dtype)

    def step(carry):
        path, tried = carry
        state, error, _, solver_state, result = METHOD.step(
            term, path.t, path.t_next, path.state, probes, path.solver_state, False
        )
        error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
        keep, t, t_next, _, controller_state, ruling = controller.adapt_step_size(
            path.t,
            path.t_next,
            path.state,
            state,
            probes,
            error,
            METHOD.error_order(term),
            path.controller_state,
        )
        t = jnp.minimum(t, end)
        t_next = jnp.where(t_next > nearly, jnp.where(keep, end, t + 0.5 * (end - t)), t_next)
        state, solver_state = jax.tree.map(
            lambda new, old: jnp.where(keep, new, old),
            (state, solver_state),
            (path.state, path.solver_state),
        )
        okay = path.okay & (~keep | diffrax.is_okay(result)) & diffrax.is_okay(ruling)
        return Path(
            t, t_next, state, solver_state, controller_state, path.num_steps + 1, okay
        ), tried + 1

    def continues(carry):
        path, tried = carry
        return is_under_way(flow, path, solver) & (tried < steps)

    return jax.lax.while_loop(continues, step, (path, jnp.int32(0)))[0]


def is_under_way(flow: Flow, path: Path, solver: Solver) -> chex.Array:
    """Return whether steps are left to do."""
    return (path.t < flow.end) & path.okay & (path.num_steps < solver.max_steps)


def finish(flow: Flow, path: Path) -> Density:
    """Return the density of one example at the end of its path."""
    x_T, divergence = path.state
    log_prior = -0.5 * (jnp.mean(jnp.square(x_T)) + math.log(2 * math.pi))
    log_prob = x_T.size * (log_prior + divergence)
    solved = (path.t >= flow.end) & path.okay & jnp.isfinite(log_prob)
    return Density(log_prob, x_T, STAGES * path.num_steps + 1, solved)


def encode(flow: Flow, x_0: chex.Array, *, solver: Solver = SOLVER) -> chex.Array:
    """Map x_0 to x_T along the flow, both [B, *D]; NaN where the solver gave up."""
    return _follow(flow, x_0, flow.start, flow.end, solver)


def decode(flow: Flow, x_T: chex.Array, *, solver: Solver = SOLVER) -> chex.Array:
    """Map x_T to x_0, the inverse of `encode` up to the solver's tolerance, both [B, *D]."""
    return _follow(flow, x_T, flow.end, flow.start, solver)


def _largest_rms(tree: Any) -> chex.Array:
    """Return the norm of the solver's error: the larger of those of x and of the log-density."""
    return jnp.max(
        jnp.stack([jnp.sqrt(jnp.mean(jnp.square(leaf))) for leaf in jax.tree.leaves(tree)])
    )


def _controller(solver: Solver) -> diffrax.PIDController:
    return diffrax.PIDController(rtol=solver.rtol, atol=solver.atol, norm=_largest_rms)


def solve(
    derivative: Callable[..., Any], state: Any, args: Any, start: float, end: float, solver: Solver
) -> diffrax.Solution:
    """Solve the ODE of one example from `start` to `end`, which may be earlier: ys[-1]."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(derivative),
        METHOD,
        t0=start,
        t1=end,
        dt0=math.copysign(FIRST_STEP, end - start),
        y0=state,
        args=args,
        stepsize_controller=_controller(solver),
        adjoint=diffrax.ForwardMode(),
        max_steps=solver.max_steps,
        throw=False,  # an error raised on the device would not name the image; `solved` does
    )


def _follow(flow: Flow, x: chex.Array, start: float, end: float, solver: Solver) -> chex.Array:
    def follow(x):
        solution = solve(
            lambda t, x, _: flow.velocity(x[None], t[None])[0], x, None, start, end, solver
        )
        solved = solution.result == diffrax.RESULTS.successful
        return jnp.where(solved, solution.ys[-1], jnp.nan)

    return jax.vmap(follow)(x)
