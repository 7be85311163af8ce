"""The likelihood of a model by its probability flow, in bits/dim; and the flow as a code: encode,
decode.

Belongs here: solving `diffusion.flow` with diffrax, the divergence, dequantisation, and images on
all devices. Does not: the velocity (`diffusion.flow`), the variational bound, and which images and
which model.

**Density.** Along a solution of dx/dt = f(x, t) the log-density changes by -div f dt (Chen et al.
2018, theorem 1), so that (Song et al. 2021, eq. 39)

    log p_start(x) = log N(x_T; 0, I) + ∫_start^end div f(x(t), t) dt,      x_T = x(end).

The divergence is a trace, div f = tr J = E[zᵀ J z] for probes z with E[z zᵀ] = I (Hutchinson 1990;
FFJORD, Grathwohl et al. 2019). With the probes √D e_1, ..., √D e_D the mean over probes is the
trace itself: one program for both.

**Images.** The model gives a density, images are numbers. Pixel k lies at k/127.5 - 1 and its bin
reaches half a step to either side; u uniform over [0, 1) spreads it evenly over the bin:

    x = (k + u - 1/2) / 127.5 - 1,      each bin 1/127.5 wide, P(k) = ∫_bins p(x) dx = (1/127.5)^D E_u[p(x)]
    -log P(k) <= E_u[-log p(x)] + D log 127.5                                                        (Jensen)
    bits/dim = -log p(x) / (D log 2) + log2 127.5                                        (log2 127.5 = 6.994)

The upper bound is tight where the density is flat over a bin. Scaling [0, 256) to [-1, 1], as
others do, has bins of 1/128 and an offset of 7 bits for a network trained on other numbers.

**The start.** p_start is a normalised density over images whatever the start, so the bits/dim are
honest: they are those of the model "decode noise down to t = start". At the default, t = 0, this is
data with the first step's noise in it, of standard deviation √(1-ᾱ_0) = 0.01 in Ho et al.'s
schedule, the narrowest that a network was trained on. A direction in which the data has variance s²
pays (r - 1 - log r) / (2 log 2) bits for that on average, r = s² / (ᾱ_0 s² + 1-ᾱ_0): 0.14 bits at s
= 0.01, 5e-4 at s = 0.05; a test measures it.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.diffusion.flow import ContinuousSchedule, EpsFunction, Flow, probability_flow
from ddpm_jax.distributed import pmap
from ddpm_jax.errors import FailureError, UsageError, choose
from ddpm_jax.evaluation.batches import image_batches
from ddpm_jax.generation import dispatch
from ddpm_jax.generation.dispatch import Pace
from ddpm_jax.randomness import (
    DEQUANTIZATION,
    LIKELIHOOD_ODE,
    PROBES,
    base_key,
    fold_in_each,
    row_keys,
)

BITS_OF_BINS = math.log2(127.5)  # see the derivation above
# evaluations of a step of Tsit5; the seventh is the first of the next one, tried again or not
STAGES = 6
METHOD = diffrax.Tsit5()
# in units of t, tried first at either end; one that is too long is rejected like any other
FIRST_STEP = 0.1


class Solver(NamedTuple):
    """How exactly the ODE is solved: Tsit5 (Tsitouras 2011) with a step that follows the error of
    each example.

    A step is accepted if its error is below atol + rtol |value|, root-mean-square over an example's
    dimensions, and separately for the log-density in nats/dim, which would weigh nothing as one
    number among D.
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


class Bits(NamedTuple):
    """What the draws say of a batch of images, on the host. A draw is dequantisation noise and
    probes of its own."""

    draws: np.ndarray  # float32 [N, draws], bits/dim: each estimates an upper bound of -log2 P / D
    num_evaluations: np.ndarray  # int32 [N, draws], of the velocity, each with all probes

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.draws)

    @property
    def bits_per_dim(self) -> np.ndarray:
        """Mean over the draws, float32 [N]."""
        return self.draws.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """Of that mean as an estimate of its expectation, float32 [N]; NaN for a single draw."""
        num_draws = self.draws.shape[1]
        if num_draws == 1:
            return np.full(len(self.draws), np.nan, np.float32)
        return self.draws.std(axis=1, ddof=1) / np.float32(math.sqrt(num_draws))


class Evaluate(Protocol):
    """(params, key, images uint8 [B, H, W, C], index int [B], labels) -> `Bits`; see
    `make_bits_per_dim`."""

    def __call__(
        self,
        params: Any,
        key: chex.PRNGKey,
        images: np.ndarray,
        index: np.ndarray,
        labels: np.ndarray | None = None,
    ) -> Bits: ...


def basis_probes(keys: chex.PRNGKey, num_probes: int, shape: tuple[int, ...]) -> chex.Array:
    """√D times the unit vectors, whatever the keys [B] and `num_probes`: float32 [B, D, *shape];
    the exact trace."""
    size = math.prod(shape)
    basis = math.sqrt(size) * jnp.eye(size).reshape(size, *shape)
    return jnp.broadcast_to(basis[None], (*keys.shape, *basis.shape))


def rademacher_probes(keys: chex.PRNGKey, num_probes: int, shape: tuple[int, ...]) -> chex.Array:
    """Signs ±1, float32 [B, P, *shape], one draw from each of keys [B]. Exact where the Jacobian is
    diagonal."""
    return jax.vmap(lambda key: jax.random.rademacher(key, (num_probes, *shape), jnp.float32))(keys)


def gaussian_probes(keys: chex.PRNGKey, num_probes: int, shape: tuple[int, ...]) -> chex.Array:
    """Normal numbers, float32 [B, P, *shape], one draw from each of keys [B]. Never of less
    variance than signs."""
    return jax.vmap(lambda key: jax.random.normal(key, (num_probes, *shape)))(keys)


TRACES: dict[str, Callable[[chex.PRNGKey, int, tuple[int, ...]], chex.Array]] = {
    "exact": basis_probes,
    "rademacher": rademacher_probes,
    "gaussian": gaussian_probes,
}


def log_density(
    flow: Flow, x: chex.Array, probes: chex.Array, *, solver: Solver = SOLVER
) -> Density:
    """log p_start(x), by the change of variables along each example's own path.

    Every example takes steps of its own, so its result does not depend on the batch around it but
    for rounding.

    Args:
      flow: velocity, start and end.
      x: [B, *D].
      probes: [B, P, *D] of a function in `TRACES`; fixed along a path, so that its integrand is
        smooth.
      solver: tolerances.
    """
    chex.assert_equal_shape([x, probes[:, 0]])
    return jax.vmap(lambda x, probes: _log_density_of_one(flow, x, probes, solver))(x, probes)


def _log_density_of_one(flow: Flow, x: chex.Array, probes: chex.Array, solver: Solver) -> Density:
    """`log_density` of one x of shape *D, with probes [P, *D]."""
    path = _set_out(flow, x, probes, solver)
    return _arrive(flow, _go_on(flow, path, probes, solver, solver.max_steps))


class Path(NamedTuple):
    """The ODE of one example under way: all that one dispatch hands on to the next. No t has an
    axis."""

    t: chex.Array  # how far it has come
    t_next: chex.Array  # where the next step will be tried to
    state: tuple[chex.Array, chex.Array]  # x [*D], the integral of the divergence so far by D
    solver_state: Any
    controller_state: Any
    num_steps: chex.Array  # int32, those that were rejected too
    okay: chex.Array  # bool, False where the solver gave up


def _change(flow: Flow) -> diffrax.ODETerm:
    """d/dt of (x, log-density by D), with probes [P, *D] for arguments."""

    def change(t, state, probes):
        def velocity(x):
            return flow.velocity(x[None], t[None])[0]

        # zᵀJ by reverse mode, one pass back for each probe, since the network's convolutions are
        # built to be fast in a loop in that direction: on a CPU Jz by forward mode takes 27 times
        # as long in here.
        value, pull_back = jax.vjp(velocity, state[0])
        products = jax.vmap(lambda z: pull_back(z)[0])(probes)
        return value, jnp.mean(probes * products)

    return diffrax.ODETerm(change)


def _set_out(flow: Flow, x: chex.Array, probes: chex.Array, solver: Solver) -> Path:
    term, state = _change(flow), (x, jnp.zeros((), x.dtype))
    start, end, step = (jnp.asarray(t, float) for t in (flow.start, flow.end, FIRST_STEP))
    order = METHOD.error_order(term)
    t_next, of_controller = _controller(solver).init(
        term, start, end, state, step, probes, METHOD.func, order
    )
    t_next = jnp.minimum(t_next, end)
    of_solver = METHOD.init(term, start, t_next, state, probes)
    return Path(start, t_next, state, of_solver, of_controller, jnp.int32(0), jnp.bool_(True))


def _go_on(
    flow: Flow, path: Path, probes: chex.Array, solver: Solver, steps: chex.Array | int
) -> Path:
    """Tries up to so many further steps: `diffrax.diffeqsolve`, which cannot hand its next step on,
    in pieces."""
    term, end, controller = _change(flow), jnp.asarray(flow.end, path.t.dtype), _controller(solver)
    nearly = np.asarray(flow.end, path.t.dtype)
    # diffrax: a step that ends within 100 units in the last place of the end is one to the end
    for _ in range(100):
        nearly = np.nextafter(nearly, -np.inf, dtype=nearly.dtype)

    def step(carry):
        path, tried = carry
        state, error, _, of_solver, result = METHOD.step(
            term, path.t, path.t_next, path.state, probes, path.solver_state, False
        )
        error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
        keep, t, t_next, _, of_controller, ruling = controller.adapt_step_size(
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
        state, of_solver = jax.tree.map(
            lambda new, old: jnp.where(keep, new, old),
            (state, of_solver),
            (path.state, path.solver_state),
        )
        okay = path.okay & (~keep | diffrax.is_okay(result)) & diffrax.is_okay(ruling)
        return Path(t, t_next, state, of_solver, of_controller, path.num_steps + 1, okay), tried + 1

    def goes_on(carry):
        path, tried = carry
        return _is_under_way(flow, path, solver) & (tried < steps)

    return jax.lax.while_loop(goes_on, step, (path, jnp.int32(0)))[0]


def _is_under_way(flow: Flow, path: Path, solver: Solver) -> chex.Array:
    return (path.t < flow.end) & path.okay & (path.num_steps < solver.max_steps)


def _arrive(flow: Flow, path: Path) -> Density:
    x_T, divergence = path.state
    log_prior = -0.5 * (jnp.mean(jnp.square(x_T)) + math.log(2 * math.pi))
    log_prob = x_T.size * (log_prior + divergence)
    solved = (path.t >= flow.end) & path.okay & jnp.isfinite(log_prob)
    return Density(log_prob, x_T, STAGES * path.num_steps + 1, solved)


def encode(flow: Flow, x_0: chex.Array, *, solver: Solver = SOLVER) -> chex.Array:
    """x_0 -> x_T along the flow, both [B, *D]: the data's own noise. Not finite where the solver
    gave up."""
    return _follow(flow, x_0, flow.start, flow.end, solver)


def decode(flow: Flow, x_T: chex.Array, *, solver: Solver = SOLVER) -> chex.Array:
    """x_T -> x_0, the inverse of `encode` up to the solver's tolerance, both [B, *D]."""
    return _follow(flow, x_T, flow.end, flow.start, solver)


def dequantize(image: chex.Array, u: chex.Array) -> chex.Array:
    """(k + u - 1/2) / 127.5 - 1: pixels k in 0..255, u in [0, 1), float32 in [-1 - 1/255, 1 +
    1/255]."""
    return (image.astype(jnp.float32) + (u - 0.5)) / 127.5 - 1.0


def bits_from_nats(log_prob: chex.Array, size: int) -> chex.Array:
    """Bits/dim of 8-bit images from the log-density, in nats, of their dequantised form; `size` is
    D."""
    return -log_prob / (size * math.log(2.0)) + BITS_OF_BINS


def make_bits_per_dim(
    make_eps: Callable[..., EpsFunction],
    continuous: ContinuousSchedule,
    *,
    trace: str = "rademacher",
    num_probes: int = 1,
    num_draws: int = 1,
    start: float = 0.0,
    solver: Solver = SOLVER,
    condition_of: Callable[[chex.Array, chex.Array | None], Any] | None = None,
) -> Evaluate:
    """Returns evaluate(params, key, images, index, labels=None) -> `Bits`, on all local devices.

    Of a conditional model they are bits of -log p(x_0 | its condition), and none of -log p(x_0).

    A batch is solved in dispatches of about half a second, or one step of the solver where that
    takes longer, between which signals are seen; see `dispatch.walk`.

    `key` is that of the seed, `index` the images' places in the data: the draws of an image depend
    on these two alone. B is a multiple of the local devices; every B is compiled once
    (`stream_bits` has but one).

    Args:
      make_eps: params -> ε at real t, or (params, condition) -> ε with `condition_of`; traced.
      continuous: its schedule.
      trace: a key of `TRACES`. `exact` takes D passes back per evaluation: for small images.
      num_probes: P of each draw; not used by `exact`. An evaluation is a forward pass and P
        backward to the input.
      num_draws: independent pairs of dequantisation noise and probes, each a solve of its own; 2 or
        more give errors.
      start: see `probability_flow`.
      solver: tolerances.
      condition_of: (x_0, labels int [B]) -> what a conditional model is told of the images, leaves
        [B, ...]. x_0 is the 8-bit image on [-1, 1]: the noise of dequantisation is what the bits
        are paid for, and not told.

    Raises:
      UsageError: an unknown trace, a count below 1, a tolerance that is not positive, or a start
        outside the chain.

    Evaluate raises:
      FailureError: the solver did not reach the end for an image, or came to a number that is not
        finite.
    """
    probe = choose("trace", trace, TRACES)
    for name, count in (
        ("num_probes", num_probes),
        ("num_draws", num_draws),
        ("max_steps", solver.max_steps),
    ):
        if count < 1:
            raise UsageError(f"{name} is {count}: choose at least 1.")
    for name, tolerance in (("rtol", solver.rtol), ("atol", solver.atol)):
        if not tolerance > 0:
            raise UsageError(f"{name} is {tolerance}: a tolerance is positive, 1e-5, say.")
    # refuses a wrong start before anything is traced
    probability_flow(lambda x, t: x, continuous, start=start)

    def parts_of(shared, examples):
        """(of one image: its condition -> its flow; the conditions, the noisy images, the probes)
        of a draw."""
        params, key, draw = shared
        images, index, labels = examples
        condition = () if condition_of is None else (condition_of(to_model_range(images), labels),)

        def flow_of(condition):
            of_one = jax.tree.map(lambda leaf: leaf[None], condition)
            return probability_flow(make_eps(params, *of_one), continuous, start=start)

        keys = row_keys(fold_in_each(jax.random.fold_in(key, LIKELIHOOD_ODE), index), draw)
        u = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(
            row_keys(keys, DEQUANTIZATION)
        )
        probes = probe(row_keys(keys, PROBES), num_probes, images.shape[1:])
        return flow_of, condition, dequantize(images, u), probes

    def set_out(shared, examples):
        flow_of, condition, x, probes = parts_of(shared, examples)
        return jax.vmap(
            lambda condition, x, probes: _set_out(flow_of(condition), x, probes, solver)
        )(condition, x, probes)

    def go_on(shared, examples, paths, first, last):
        flow_of, condition, _, probes = parts_of(shared, examples)

        def of_one(condition, path, probes):
            flow = flow_of(condition)
            path = _go_on(flow, path, probes, solver, last - first)
            return path, _is_under_way(flow, path, solver)

        paths, under_way = jax.vmap(of_one)(condition, paths, probes)
        return paths, ~jnp.any(under_way)

    def arrive(shared, examples_and_paths):
        examples, paths = examples_and_paths
        flow_of, condition, x, _ = parts_of(shared, examples)
        found = jax.vmap(lambda condition, path: _arrive(flow_of(condition), path))(
            condition, paths
        )
        bits = bits_from_nats(found.log_prob, math.prod(x.shape[1:]))
        return bits, found.num_evaluations, found.solved

    begun, segment, arrived = (
        pmap.map_examples(set_out),
        pmap.map_segment(go_on),
        pmap.map_examples(arrive),
    )
    pace = Pace()

    def evaluate(params, key, images, index, labels=None):
        chex.assert_type(images, np.uint8)
        examples = pmap.to_devices([(images, np.asarray(index, np.int32), labels)])
        draws = []
        for draw in range(num_draws):
            shared = pmap.replicate((params, key, np.int32(draw)))
            paths = dispatch.walk(
                lambda paths, first, last, shared=shared: segment(
                    shared, examples, paths, first, last
                ),
                begun(shared, examples),
                solver.max_steps,
                pace=pace,
            )
            draws.append(pmap.unshard(arrived(shared, (examples, paths))))
        bits, num_evaluations, solved = (
            np.stack(parts, axis=1) for parts in zip(*draws, strict=True)
        )
        _check_solved(solved.all(axis=1), index, solver)
        return Bits(bits, num_evaluations)

    return evaluate


def no_bits(num_draws: int) -> Bits:
    """The `Bits` of no image."""
    return Bits(np.zeros((0, num_draws), np.float32), np.zeros((0, num_draws), np.int32))


def stream_bits(
    evaluate: Evaluate,
    params: Any,
    source: Source,
    *,
    seed: int,
    num_images: int,
    batch_size: int,
    done: int = 0,
    first: int = 0,
) -> Iterator[Bits]:
    """Yields the `Bits` of images done..num_images-1, a batch at a time; arguments and errors are
    of `image_batches`.

    `evaluate` is of `make_bits_per_dim`, `params` its parameters, `seed` that of dequantisation and
    probes.
    """
    key = base_key(seed)
    batches = image_batches(
        source, num_images=num_images, batch_size=batch_size, done=done, first=first
    )
    for images, labels, index, wanted in batches:
        found = evaluate(params, key, images, index, labels)
        yield Bits(*(part[wanted] for part in found))


def _check_solved(solved: np.ndarray, index: np.ndarray, solver: Solver) -> None:
    if not solved.all():
        raise FailureError(
            f"The ODE of image {index[np.argmin(solved)]} did not reach its end in "
            f"{solver.max_steps} steps or came to a number that is not finite: loosen rtol "
            f"({solver.rtol:g}) and atol ({solver.atol:g}), or use an earlier checkpoint if the "
            "weights have diverged."
        )


def _largest_rms(tree: Any) -> chex.Array:
    """The norm of the solver's error: each leaf (the example; its log-density) by itself, the worst
    one counts."""
    return jnp.max(
        jnp.stack([jnp.sqrt(jnp.mean(jnp.square(leaf))) for leaf in jax.tree.leaves(tree)])
    )


def _controller(solver: Solver) -> diffrax.PIDController:
    return diffrax.PIDController(rtol=solver.rtol, atol=solver.atol, norm=_largest_rms)


def _solve(
    derivative: Callable[..., Any], state: Any, args: Any, start: float, end: float, solver: Solver
) -> diffrax.Solution:
    """One example from `start` to `end`, either of which may be the later; the state at the end is
    ys[-1]."""
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
        throw=False,  # an error raised on the device would not say which image; `solved` does
    )


def _follow(flow: Flow, x: chex.Array, start: float, end: float, solver: Solver) -> chex.Array:
    def follow(x):
        solution = _solve(
            lambda t, x, _: flow.velocity(x[None], t[None])[0], x, None, start, end, solver
        )
        return jnp.where(_solved(solution), solution.ys[-1], jnp.nan)

    return jax.vmap(follow)(x)


def _solved(solution: diffrax.Solution) -> chex.Array:
    return solution.result == diffrax.RESULTS.successful
