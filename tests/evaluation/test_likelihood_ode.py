"""The flow's likelihood of Gaussian mixtures with known density, mass and flow."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.diffusion import flow as flows
from ddpm_jax.diffusion import mixture as mixtures
from ddpm_jax.diffusion.schedules import make_betas, make_schedule
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation import flow_density, traces
from ddpm_jax.evaluation import likelihood_ode as ode
from ddpm_jax.evaluation.dequantization import dequantize

rng = np.random.default_rng(0)
WEIGHTS = [0.2, 0.5, 0.3]
LINE = mixtures.make_mixture(WEIGHTS, np.array([[-0.8], [0.1], [0.7]]), [0.01, 0.09, 0.0025])
PLANE = mixtures.make_mixture(WEIGHTS, rng.uniform(-1, 1, (3, 2)), [0.01, 0.09, 0.0025])
IMAGES = mixtures.make_mixture(WEIGHTS, rng.uniform(-0.7, 0.7, (3, 4, 4, 1)), [0.02, 0.05, 0.01])
# The cosine schedule ends at √ᾱ = 5e-5, so that N(0, I) is q(x_T) to 1e-4; the linear one ends at
# 6e-3.
COSINE, LINEAR = (
    flows.make_continuous(make_schedule(make_betas(name, 1000))) for name in ("cosine", "linear")
)
TIGHT = flow_density.Solver(rtol=1e-6, atol=1e-6)


log_prob = jax.jit(mixtures.log_prob)


def exact_flow(mixture, continuous, start=0.0):
    return flows.probability_flow(flows.mixture_eps(mixture, continuous), continuous, start=start)


@jax.jit
def at(mixture, continuous, t):
    """q(x_t)."""
    return mixtures.diffused(mixture, *flows.noise_level(continuous, jnp.float32(t))[1:])


def draw(mixture, count, seed=0):
    return jax.jit(mixtures.sample)(mixture, make_keys(count, seed))


def make_keys(count, seed=1):
    return jax.random.split(jax.random.key(seed), count)


@functools.partial(jax.jit, static_argnames=("start", "solver"))
def compiled(mixture, continuous, x, probes, start, solver):
    return flow_density.log_density(
        exact_flow(mixture, continuous, start), x, probes, solver=solver
    )


def densities(mixture, continuous, x, probes, *, start=0.0, solver=flow_density.SOLVER):
    density = compiled(mixture, continuous, x, probes, start, solver)
    assert density.solved.all()
    return jax.tree.map(np.asarray, density)


def exact_probes(x):
    return traces.basis_probes(make_keys(len(x)), 1, x.shape[1:])


def normal_log_prob(x):
    return np.sum(scipy.stats.norm.logpdf(np.asarray(x, np.float64)), axis=tuple(range(1, x.ndim)))


@pytest.mark.parametrize(
    "mixture",
    [
        pytest.param(LINE, id="1-D", marks=pytest.mark.full),
        pytest.param(PLANE, id="2-D"),
        pytest.param(IMAGES, id="4x4x1", marks=pytest.mark.full),
    ],
)
def test_the_likelihood_of_a_mixture_is_its_density_to_a_thousandth_of_a_bit(mixture):
    start = at(mixture, COSINE, 0)
    x = draw(start, 12)
    density = densities(mixture, COSINE, x, exact_probes(x), solver=TIGHT)
    error = (density.log_prob - log_prob(start, x)) / (x[0].size * math.log(2))
    assert np.abs(error).max() < 1e-3
    assert np.abs(error).mean() < 2e-4


@pytest.mark.full
def test_the_linear_schedule_errs_by_what_its_prior_does():
    """N(0, I) is q(x_T) to 6e-3 only; the error at each x is the log of their ratio at its x_T."""
    start = at(PLANE, LINEAR, 0)
    x = draw(start, 12)
    density = densities(PLANE, LINEAR, x, exact_probes(x), solver=TIGHT)
    error = density.log_prob - log_prob(start, x)
    mismatch = normal_log_prob(density.x_T) - log_prob(at(PLANE, LINEAR, 999), density.x_T)
    np.testing.assert_allclose(error, mismatch, atol=1e-3)
    assert np.abs(mismatch).max() > 2e-3


@pytest.mark.full
def test_one_gaussian_is_scaled_and_shifted():
    """x_T = √ᾱ_T m + √(V_T / V_start) (x - √ᾱ_start m).

    The log-density changes by ½ log(V_T / V_start) D.
    """
    data = mixtures.make_mixture([1.0], np.full((1, 2, 2, 1), 0.4), [0.04])
    start, end = at(data, LINEAR, 0), at(data, LINEAR, 999)
    x = draw(data, 6)
    density = densities(
        data, LINEAR, x, traces.rademacher_probes(make_keys(6), 1, (2, 2, 1)), solver=TIGHT
    )
    scale = np.sqrt(end.variances / start.variances)[0]
    x_T = end.means + scale * (x - start.means)
    np.testing.assert_allclose(density.x_T, x_T, atol=2e-4)
    # The Jacobian is a multiple of the identity, so one probe of signs is the exact trace.
    np.testing.assert_allclose(
        density.log_prob, normal_log_prob(x_T) + 4 * np.log(scale), atol=2e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_is_unbiased(trace):
    """256 solves of the same two x, each with its own probes, against the exact trace.

    Within 4 standard errors.
    """
    x = draw(at(IMAGES, COSINE, 0), 2)
    truth = densities(IMAGES, COSINE, x, exact_probes(x)).log_prob
    probes = traces.TRACES[trace](make_keys(256), 1, x.shape[1:])
    estimates = densities(IMAGES, COSINE, jnp.repeat(x, 128, axis=0), probes).log_prob.reshape(
        2, 128
    )
    standard_error = estimates.std(axis=1, ddof=1) / math.sqrt(128)
    assert np.all(np.abs(estimates.mean(axis=1) - truth) < 4 * standard_error)
    assert np.all(standard_error > 0.01)  # nats: the probes do matter
    assert np.all(standard_error < 1)


@pytest.mark.parametrize("trace", list(traces.TRACES))
def test_probes_have_the_identity_as_second_moment_and_belong_to_their_key(trace):
    keys = make_keys(20_000 if trace != "exact" else 2)
    probes = np.asarray(traces.TRACES[trace](keys, 3, (2, 2)))
    assert probes.shape[1:] == ((4, 2, 2) if trace == "exact" else (3, 2, 2))
    flat = probes.reshape(-1, 4)
    # 60,000 probes: standard error √(2 / 60000) = 0.006 of a mean of squares
    np.testing.assert_allclose(
        flat.T @ flat / len(flat), np.eye(4), atol=1e-6 if trace == "exact" else 0.03
    )
    np.testing.assert_array_equal(traces.TRACES[trace](keys[1:2], 3, (2, 2)), probes[1:2])


@pytest.mark.full
def test_the_flow_keeps_the_rank_of_every_point_of_a_line():
    """In one dimension paths cannot cross.

    F_start(x) = F_T(x_T), the quantiles of LINE's q_t by SciPy.
    """

    def cdf(mixture, x):
        parts = zip(*mixture, strict=True)
        return sum(w * scipy.stats.norm(m, np.sqrt(v)).cdf(x) for w, m, v in parts)

    x = np.linspace(-1.1, 1.0, 24, dtype=np.float32)[:, None]
    x_T = jax.jit(lambda x: flow_density.encode(exact_flow(LINE, COSINE), x, solver=TIGHT))(x)
    np.testing.assert_allclose(
        cdf(at(LINE, COSINE, 999), x_T), cdf(at(LINE, COSINE, 0), x), atol=1e-4
    )


@pytest.mark.full
def test_decoding_undoes_encoding():
    flow = exact_flow(IMAGES, LINEAR)
    x_0 = draw(at(IMAGES, LINEAR, 0), 8)
    x_T, back = jax.jit(
        lambda x: (
            z := flow_density.encode(flow, x, solver=TIGHT),
            flow_density.decode(flow, z, solver=TIGHT),
        )
    )(x_0)
    assert np.abs(x_T - x_0).max() > 1
    # A direction contracts from 1 to about 0.1 on the way back; at its forks the flow stretches
    # errors of 1e-6.
    np.testing.assert_allclose(back, x_0, atol=1e-3)


@pytest.mark.full
def test_encoded_data_is_noise_and_decoded_noise_is_data():
    flow = exact_flow(IMAGES, COSINE)
    encode, decode = (
        jax.jit(lambda x, f=f: f(flow, x)) for f in (flow_density.encode, flow_density.decode)
    )
    x_T = np.ravel(encode(draw(at(IMAGES, COSINE, 0), 400)))
    assert scipy.stats.kstest(x_T, scipy.stats.norm.cdf).pvalue > 1e-3
    x_0 = np.asarray(decode(jax.random.normal(jax.random.key(2), (400, 4, 4, 1))))
    nearest = np.argmin([np.mean((x_0 - m) ** 2, axis=(1, 2, 3)) for m in IMAGES.means], axis=0)
    shares = np.bincount(nearest, minlength=3)
    assert scipy.stats.chisquare(shares, 400 * np.array(WEIGHTS)).pvalue > 1e-3


@pytest.mark.full
def test_a_result_does_not_depend_on_the_batch_around_it():
    """Each example has its own steps.

    Rounding, which depends on the size of the batch, may change whether a step is accepted.
    """
    x = draw(at(PLANE, COSINE, 0), 12)
    probes = exact_probes(x)
    twelve, one = densities(PLANE, COSINE, x, probes), densities(PLANE, COSINE, x[2:3], probes[2:3])
    np.testing.assert_allclose(one.log_prob, twelve.log_prob[2:3], atol=2e-3)
    others = jnp.concatenate([10 * x[:2], x[2:3], 10 * x[3:]])
    np.testing.assert_allclose(
        densities(PLANE, COSINE, others, probes).log_prob[2], twelve.log_prob[2], atol=1e-4
    )
    assert len(set(twelve.num_evaluations.tolist())) > 1


@pytest.mark.full
def test_num_evaluations_counts_the_calls():
    calls = []
    eps = flows.mixture_eps(PLANE, COSINE)

    def counted(x, t):
        jax.debug.callback(lambda t: calls.append(t), t)
        return eps(x, t)

    x = draw(at(PLANE, COSINE, 0), 1)
    flow = flows.probability_flow(counted, COSINE)
    density = jax.jit(lambda x, probes: flow_density.log_density(flow, x, probes))(
        x, exact_probes(x)
    )
    jax.effects_barrier()
    assert density.num_evaluations.tolist() == [len(calls)]


@pytest.mark.full
@pytest.mark.parametrize(("scale", "expected"), [(0.01, 0.1393), (0.05, 5.4e-4)])
def test_starting_at_t_0_costs_what_the_docstring_says(scale, expected):
    """Mean excess of -log2 p_start over clean data's -log2 q.

    (r - 1 - log r) / 2 log 2, r = s² / (ᾱ_0 s² + 1-ᾱ_0).
    """
    data = mixtures.make_mixture([1.0], np.zeros((1, 1)), [scale**2])
    # Quantiles stand for the expectation; rescaled, their variance is the data's.
    quantiles = scipy.stats.norm.ppf((np.arange(64) + 0.5) / 64)
    x = np.float32(scale * quantiles / quantiles.std())[:, None]
    excess = {
        start: np.mean(
            np.asarray(log_prob(data, x))
            - densities(data, LINEAR, x, exact_probes(x), start=start, solver=TIGHT).log_prob
        )
        / math.log(2)
        for start in (0.0, -0.999)
    }
    r = scale**2 / ((1 - 1e-4) * scale**2 + 1e-4)
    assert excess[0.0] == pytest.approx((r - 1 - math.log(r)) / (2 * math.log(2)), abs=3e-4)
    assert excess[0.0] == pytest.approx(expected, abs=3e-4)
    # with the exact ε the flow can start at data that is almost clean
    assert abs(excess[-0.999]) < 3e-4


def test_dequantisation_fills_the_bins_without_gaps():
    levels = np.arange(256, dtype=np.uint8)
    low, middle, high = (dequantize(levels, u) for u in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(low[1:], high[:-1], atol=1e-7)
    np.testing.assert_allclose(high - low, 2 / 255, atol=2e-7)
    np.testing.assert_allclose(middle, to_model_range(levels), atol=1e-7)
    assert low[0] == pytest.approx(-1 - 1 / 255)


def probability_mass(mixture, images):
    """Return log P of 8-bit images in nats.

    Each component's Gaussian is integrated over the bins, float64.
    """
    edges = [(images.astype(np.float64) + d) / 127.5 - 1 for d in (-0.5, 0.5)]
    logs = []
    for w, m, v in zip(*(np.asarray(field, np.float64) for field in mixture), strict=True):
        z = np.stack([(edge - m) / np.sqrt(v) for edge in edges])
        # mirrored into the lower tail
        low, high = scipy.special.log_ndtr(np.where(z[0] > 0, -z[::-1], z))
        logs.append(np.log(w) + np.sum(high + np.log1p(-np.exp(low - high)), axis=(1, 2, 3)))
    return scipy.special.logsumexp(logs, axis=0)


def eight_bit_images(count):
    x = np.asarray(draw(IMAGES, count, seed=5))
    return np.round(np.clip((x + 1) * 127.5, 0, 255)).astype(np.uint8)


def make_evaluate(**options):
    return ode.make_bits_per_dim(
        lambda mixture: flows.mixture_eps(mixture, COSINE), COSINE, **options
    )


@pytest.mark.full
def test_bits_per_dim_are_those_of_the_probability_mass():
    """log P of q_start over bins is known.

    Bins are 0.008 wide, the data 0.1: Jensen's gap is below 1e-3 bits/dim.
    """
    images = eight_bit_images(8)
    bits = make_evaluate(trace="exact", num_draws=6)(
        IMAGES, jax.random.key(0), images, np.arange(8)
    )
    truth = -probability_mass(at(IMAGES, COSINE, 0), images) / (16 * math.log(2))
    assert bits.draws.shape == bits.num_evaluations.shape == (8, 6)
    assert np.all(np.abs(bits.bits_per_dim - truth) < 4 * bits.standard_error + 1e-3)
    # 48 draws; bins of 2/256 would be off by 5.7e-3
    assert abs(np.mean(bits.bits_per_dim - truth)) < 2.5e-3
    assert bits.standard_error.max() < 0.02


@pytest.mark.slow
def test_a_network_that_predicts_mu_has_the_likelihood_of_its_epsilon():
    """μ of the exact ε by Ho et al., eq. 11: (x - β_t / √(1-ᾱ_t) ε) / √α_t.

    β_t is over a whole step; t - 1 >= -1.
    """
    exact = flows.mixture_eps(IMAGES, COSINE)

    def mu(x, t):
        now, before = (flows.noise_level(COSINE, t - back)[1:] for back in (0, 1))
        alpha = (now[0] / before[0])[:, None, None, None] ** 2
        beta = 1 - alpha
        return (x - beta / now[1][:, None, None, None] * exact(x, t)) / jnp.sqrt(alpha)

    make_eps = {
        "eps": lambda _: exact,
        "mu": lambda _: flows.network_eps(mu, COSINE, parameterization="mu"),
    }
    images, index = eight_bit_images(3), np.arange(3)
    bits = {
        k: ode.make_bits_per_dim(f, COSINE)({}, jax.random.key(0), images, index).draws
        for k, f in make_eps.items()
    }
    # β is a difference in float32, 1e-4 of it at t = 0
    np.testing.assert_allclose(bits["mu"], bits["eps"], atol=1e-3)


@pytest.mark.slow
def test_a_condition_is_made_of_the_8_bit_image_and_its_label_not_of_the_noisy_one():
    images, labels, seen = eight_bit_images(4), np.array([2, 0, 1, 1], np.int32), []

    def make_condition(x_0, labels):
        jax.debug.callback(lambda x_0: seen.append(np.asarray(x_0)), x_0)
        return labels

    def make_eps(shifts, label):  # a label moves the mixture
        mixture = IMAGES._replace(means=IMAGES.means + jnp.asarray(shifts)[label[0]])
        return flows.mixture_eps(mixture, COSINE)

    shifts = (0.0, 0.1, -0.2)
    evaluate = ode.make_bits_per_dim(make_eps, COSINE, make_condition=make_condition)
    conditioned = evaluate(shifts, jax.random.key(0), images, np.arange(4), labels).draws
    jax.effects_barrier()
    # the noise is up to 4e-3
    np.testing.assert_allclose(np.concatenate(seen), images / 127.5 - 1, atol=1e-7)
    alone = make_evaluate()
    for label, shift in enumerate(shifts):
        moved = IMAGES._replace(means=IMAGES.means + np.float32(shift))
        wanted = alone(moved, jax.random.key(0), images, np.arange(4)).draws
        own = labels == label
        # an accepted step more or less, at 1e-5
        np.testing.assert_allclose(conditioned[own], wanted[own], atol=1e-3)
        assert np.all(np.abs(conditioned[~own] - wanted[~own]) > 0.01)


@pytest.mark.slow
def test_an_images_draws_depend_on_the_seed_and_its_index_alone():
    images, index = eight_bit_images(4), np.array([3, 11, 7, 40])
    evaluate = make_evaluate(trace="rademacher")
    together = evaluate(IMAGES, jax.random.key(0), images, index)
    reordered = evaluate(IMAGES, jax.random.key(0), images[[2, 0, 1, 3]], index[[2, 0, 1, 3]])
    np.testing.assert_allclose(reordered.draws, together.draws[[2, 0, 1, 3]], atol=1e-4)
    elsewhere = evaluate(IMAGES, jax.random.key(0), images, index + 1)
    other_seed = evaluate(IMAGES, jax.random.key(1), images, index)
    assert np.abs(elsewhere.draws - together.draws).min() > 1e-4
    assert np.abs(other_seed.draws - together.draws).min() > 1e-4
    assert np.isnan(together.standard_error).all()  # one draw gives no estimate of its own error


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"trace": "rademache"}, "Did you mean 'rademacher'"),
        ({"num_probes": 0}, "num_probes is 0"),
        ({"num_draws": 0}, "num_draws is 0"),
        ({"start": -1}, "cannot start at t = -1"),
        ({"solver": flow_density.Solver(rtol=0)}, "rtol is 0"),
        ({"solver": flow_density.Solver(atol=-1.0)}, "atol is -1"),
        ({"solver": flow_density.Solver(max_steps=0)}, "max_steps is 0"),
    ],
)
def test_a_wrong_option_is_refused(options, complaint):
    with pytest.raises(UsageError, match=complaint):
        make_evaluate(**options)


@pytest.mark.full
def test_an_unfinished_solve_names_its_image():
    evaluate = make_evaluate(solver=flow_density.Solver(max_steps=3))
    with pytest.raises(FailureError, match=r"image 17 did not reach its end in 3 steps"):
        evaluate(IMAGES, jax.random.key(0), eight_bit_images(2), np.array([17, 18]))


@pytest.mark.full
def test_diverged_weights_are_reported_and_not_returned():
    diverged = IMAGES._replace(means=IMAGES.means * np.float32(np.nan))
    evaluate = make_evaluate(solver=flow_density.Solver(max_steps=50))
    with pytest.raises(FailureError, match="not finite"):
        evaluate(diverged, jax.random.key(0), eight_bit_images(1), np.array([0]))


@pytest.mark.full
@pytest.mark.parametrize("steps", [1, 7])
def test_a_path_walked_in_pieces_is_the_solution_of_diffrax_bit_for_bit(steps):
    flow, x = exact_flow(PLANE, COSINE), draw(PLANE, 6)
    probes = traces.rademacher_probes(make_keys(6), 1, x.shape[1:])
    solver = flow_density.Solver(rtol=1e-4, atol=1e-4)

    def by_diffrax(x, probes):
        state = (x, jnp.zeros(()))
        solution = flow_density.solve(
            flow_density.ode_term(flow).vector_field, state, probes, flow.start, flow.end, solver
        )
        return [leaf[-1] for leaf in solution.ys], solution.stats["num_steps"]

    further = jax.jit(
        jax.vmap(lambda path, probes: flow_density.advance(flow, path, probes, solver, steps))
    )
    path = jax.jit(jax.vmap(lambda x, probes: flow_density.begin(flow, x, probes, solver)))(
        x, probes
    )
    pieces = 0
    while np.any(flow_density.is_under_way(flow, path, solver)):
        path, pieces = further(path, probes), pieces + 1
    expected, num_steps = jax.jit(jax.vmap(by_diffrax))(x, probes)
    assert pieces == -(-int(num_steps.max()) // steps) > 1
    np.testing.assert_array_equal(path.num_steps, num_steps)
    for ours, theirs in zip(path.state, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_an_unfinished_solve_is_not_a_number_where_that_is_asked_for():
    evaluate = make_evaluate(solver=flow_density.Solver(max_steps=3), strict=False)
    found = evaluate(IMAGES, jax.random.key(0), eight_bit_images(2), np.array([17, 18]))
    assert np.isnan(found.draws).all()
    np.testing.assert_array_equal(found.num_evaluations, 6 * 3 + 1)
