"""The digits of samplers' weights, against the formulas of docs/samplers.md.

These are written out in 64 bits of mantissa.

As many steps as the chain has, where two levels are so near each other that a difference of rounded
numbers has few digits left. Every integer spacing keeps all times then; the others lie between
them.
"""

import math

import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.samplers.editing import repaint
from ddpm_jax.samplers.inversion import invert
from ddpm_jax.samplers.pndm import ADAMS_BASHFORTH
from ddpm_jax.samplers.registry import SAMPLERS
from ddpm_jax.samplers.spacing import space

Long = np.longdouble
pytestmark = pytest.mark.skipif(np.finfo(Long).eps > 1e-18, reason="long double is double here")

TOLERANCE = 1e-6  # of the formulas; the tables are float32, rounded by 6e-8
OPTIONS = {
    "ddim": {"eta": 0.7},
    "edm": {"s_churn": 40.0, "s_min": 0.05, "s_max": 5.0},
    "dpmpp_2m_sde": {"eta": 0.6},
    "unipc": {"order": 3},
}
CHAINS = [(schedule, steps) for schedule in ("linear", "cosine") for steps in (1000, 4000)]
every_chain = pytest.mark.parametrize(("schedule", "steps"), CHAINS)
every_spacing = pytest.mark.parametrize(
    "spacing",
    [
        "linspace",
        pytest.param("karras", marks=pytest.mark.full),
        pytest.param("exponential", marks=pytest.mark.full),
    ],
)


class Exact:
    """σ, √ᾱ and √(1-ᾱ) of the levels of a chain, noisiest first, clean data last: [N+1]."""

    def __init__(self, chain, times):
        self.alphas_bar = np.cumprod(1 - chain.betas.astype(Long))
        table = 0.5 * (np.log1p(-self.alphas_bar) - np.log(self.alphas_bar))
        below = np.floor(times).astype(int)
        part, above = Long(times) - below, np.minimum(below + 1, len(table) - 1)
        self.set(np.exp((1 - part) * table[below] + part * table[above])[::-1])

    def set(self, sigma):
        self.sigma = np.append(sigma, Long(0))
        self.signal, self.noise = (
            1 / np.sqrt(1 + self.sigma**2),
            self.sigma / np.sqrt(1 + self.sigma**2),
        )

    def asking(self, sigma):
        """The same chain with other levels."""
        other = object.__new__(Exact)
        other.set(sigma)
        return other

    @property
    def retained(self):
        """ᾱ / ᾱ' of each step."""
        return (self.signal[:-1] / self.signal[1:]) ** 2


def integrals(nodes, start, end, rate):
    """∫ rate e^(-rate (end-u)) l_j(u) du over [start, end], or ∫ l_j du for a rate of 0.

    Integrated by powers of u, one by one.
    """
    length = end - start
    places = [(node - start) / length for node in nodes]

    def moment(k):
        if not rate:
            return 1 / Long(k + 1)
        c, term, total = rate * length, 1 / Long(k + 1), Long(0)
        for j in range(60):  # (-c)^j k! / (k+j+1)!
            total, term = total + term, -term * c / (k + j + 2)
        return total

    found = []
    for j, place in enumerate(places):
        polynomial = np.array([Long(1)])
        for other in places[:j] + places[j + 1 :]:
            polynomial = np.convolve(polynomial, np.array([-other, Long(1)]) / (place - other))
        found.append(length * (rate or 1) * sum(p * moment(k) for k, p in enumerate(polynomial)))
    return np.array(found)


def flow(levels, eps, z=None):
    """Rows of x̄' = x̄ + Σ c ε + d z."""
    after = levels.signal[1:]
    rows = {"x": after / levels.signal[:-1], "eps": after[:, None] * eps}
    return rows if z is None else {**rows, "z": after * z}


def ddim(exact, eta=0.0):
    before, after = exact.noise[:-1], exact.noise[1:]
    s = eta * after / before * np.sqrt(1 - exact.retained)
    return {"x_0": exact.signal[1:, None], "eps": np.sqrt(after**2 - s**2)[:, None], "z": s}


def euler_ancestral(exact, eta=1.0):
    before, after = exact.sigma[:-1], exact.sigma[1:]
    up = np.minimum(after, eta * after / before * np.sqrt(before**2 - after**2))
    return flow(exact, (np.sqrt(after**2 - up**2) - before)[:, None], up)


def edm(exact, s_churn=0.0, s_min=0.0, s_max=np.inf):
    sigma = exact.sigma[:-1]
    gamma = np.where(
        (s_min <= sigma) & (sigma <= s_max), min(s_churn / len(sigma), math.sqrt(2) - 1), 0
    )
    raised = np.minimum((1 + gamma) * sigma, sigma[0])[1:]
    levels = exact.asking(np.append(sigma[:1], np.stack([sigma[1:], raised], axis=1)))
    eps, z = np.zeros((len(levels.sigma) - 1, 2), Long), np.zeros(len(levels.sigma) - 1, Long)
    step = exact.sigma[1:] - np.append(sigma[:1], raised)
    eps[0::2, 0], eps[1::2, 0], eps[1::2, 1] = step, step[:-1] / 2, -step[:-1] / 2
    z[1::2] = np.sqrt(raised**2 - sigma[1:] ** 2)
    return flow(levels, eps, z)


def dpm2(exact):
    sigma = exact.sigma[:-1]
    halfway = np.sqrt(sigma[:-1] * sigma[1:])
    levels = exact.asking(np.append(np.stack([sigma[:-1], halfway], axis=1), sigma[-1:]))
    eps = np.zeros((len(levels.sigma) - 1, 2), Long)
    eps[0::2, 0] = np.append(halfway, 0) - sigma
    eps[1::2, 0], eps[1::2, 1] = sigma[1:] - sigma[:-1], -(halfway - sigma[:-1])
    return flow(levels, eps)


def lms(exact):
    eps = np.zeros((len(exact.sigma) - 1, 4), Long)
    for i in looked_at(len(eps)):
        known = exact.sigma[max(i - 3, 0) : i + 1][::-1]
        eps[i, : len(known)] = integrals(list(known), exact.sigma[i], exact.sigma[i + 1], 0)
    return flow(exact, eps)


def plms(exact):
    levels = exact.asking(np.insert(exact.sigma[:-1], 1, exact.sigma[1]))
    move = np.diff(levels.sigma)
    eps = np.zeros((len(move), 5), Long)
    eps[0, 0], eps[1, :2] = move[0], move[0] * np.array([0.5, -0.5])
    for row in range(2, len(move)):
        kept = [age for age in range(min(row, 4) + 1) if age != row - 1][:4]
        eps[row, kept] = move[row] * ADAMS_BASHFORTH[len(kept) - 1]
    return flow(levels, eps)


def solver(exact, columns, eta=0.0):
    h = np.log(exact.sigma[:-2] / exact.sigma[1:-1])
    half_log_snr = -np.log(exact.sigma[:-1])
    x_0 = np.zeros((len(h) + 1, columns), Long)
    for i in looked_at(len(h)):
        if columns == 3 and i >= 2:
            known = list(half_log_snr[i - 2 : i + 1][::-1])
            weights = integrals(known, half_log_snr[i], half_log_snr[i + 1], 1 + Long(eta))
        else:
            weights = -np.expm1(-(1 + Long(eta)) * h[i]) * np.ones(1)
            if i:
                weights = weights * np.array([1 + h[i] / h[i - 1] / 2, -h[i] / h[i - 1] / 2])
        x_0[i, : len(weights)] = exact.signal[i + 1] * weights
    x_0[-1, 0] = 1
    x = np.append(exact.noise[1:-1] / exact.noise[:-2] * np.exp(-eta * h), 0)
    return {
        "x": x,
        "x_0": x_0,
        "z": np.append(exact.noise[1:-1] * np.sqrt(-np.expm1(-2 * eta * h)), 0),
    }


def unipc(exact, order):
    half_log_snr, num_steps = -np.log(exact.sigma[:-1]), len(exact.sigma) - 1
    keep = np.append(exact.noise[1:-1] / exact.noise[:-2], 0)

    def weights(i, known):
        """Of bh2, in x at level i+1."""
        start, end = half_log_snr[i : i + 2]
        if len(known) == 2:
            (other,) = (k for k in known if k != i)
            slope = -np.expm1(start - end) / 2 * (end - start) / (half_log_snr[other] - start)
            whole = {other: slope, i: -np.expm1(start - end) - slope}
            return exact.signal[i + 1] * np.array([whole[k] for k in known])
        return exact.signal[i + 1] * integrals(
            [half_log_snr[k] for k in known], start, end, Long(1)
        )

    def of_step(i):
        p = min(order, i + 1, num_steps - i)
        if i == num_steps - 1:
            return np.ones(1, Long), None
        return weights(i, range(i, i - p, -1)), weights(i, range(i + 1, i - p, -1))

    x_0 = np.zeros((num_steps, order + 1), Long)
    for i in looked_at(num_steps):
        if i:
            predicted, corrected = of_step(i - 1)
            x_0[i, 1 : len(predicted) + 1] -= keep[i] * predicted
            x_0[i, : len(corrected)] += keep[i] * corrected
        newest = of_step(i)[0]
        x_0[i, : len(newest)] += newest
    return {"x": keep, "x_0": x_0}


REFERENCES = {
    "ddim": ddim,
    "euler": ddim,
    "euler_ancestral": euler_ancestral,
    "heun": edm,
    "dpm2": dpm2,
    "edm": edm,
    "lms": lms,
    "plms": plms,
    "dpmpp_2m": lambda exact: solver(exact, 2),
    "dpmpp_3m": lambda exact: solver(exact, 3),
    "dpmpp_2m_sde": lambda exact, eta: solver(exact, 2, eta),
    "dpmpp_3m_sde": lambda exact: solver(exact, 3, 1.0),
    "unipc": unipc,
}


def looked_at(count):
    """Both ends and some rows between them: the reference is slow."""
    return np.unique(
        np.concatenate([np.arange(6), np.arange(6, count, 83), np.arange(count - 6, count)])
    )


def assert_same_digits(found, expected, name):
    """Every number to TOLERANCE; of the predictions that a row adds up, to that of the largest."""
    scale = (
        np.abs(expected).max(axis=-1, keepdims=True) if np.ndim(expected) == 2 else np.abs(expected)
    )
    off = np.abs(found - expected) > TOLERANCE * scale
    assert not off.any(), (name, np.argwhere(off)[:3], found[off][:3], expected[off][:3])


def chain_and_times(schedule, steps, spacing):
    chain = Chain(make_betas(schedule, steps))
    return chain, space(chain, spacing, steps)


@every_chain
@every_spacing
@pytest.mark.parametrize("name", REFERENCES)
def test_every_weight_is_that_of_the_formula(name, schedule, steps, spacing):
    chain, times = chain_and_times(schedule, steps, spacing)
    options = OPTIONS.get(name, {})
    weights = SAMPLERS[name](chain, times, **options).rows.weights
    expected = REFERENCES[name](Exact(chain, times), **options)
    rows = looked_at(len(weights.x))
    for field, wanted in expected.items():
        found = getattr(weights, field)
        if field == "z" and found is None:
            assert not wanted.any()
            continue
        assert_same_digits(found[rows], wanted[rows], field)


@every_chain
@every_spacing
def test_the_runge_kutta_rows_of_pndm_lead_to_the_levels_of_the_formula(schedule, steps, spacing):
    """Sums of ε's weights are the rows' moves in σ.

    All rows but the first twelve are those of plms.
    """
    chain, times = chain_and_times(schedule, steps, spacing)
    sampler = SAMPLERS["pndm"](chain, times)
    exact = Exact(chain, times)
    halfway = Exact(chain, np.sort((times[:-4:-1] + times[-2:-5:-1]) / 2)).sigma[:-1]
    half = halfway - exact.sigma[:3]
    whole = exact.sigma[1:4] - exact.sigma[:3]
    moves = np.stack([half, 0 * half, whole - half, 0 * half], axis=1).ravel()
    stages = np.stack([1 / np.sqrt(1 + halfway**2)] * 2 + [exact.signal[1:4]] * 2, axis=1)
    after = np.append(stages.ravel(), exact.signal[4:])
    found = sampler.rows.weights.eps.astype(Long).sum(axis=1) / after
    expected = np.append(moves, np.diff(exact.sigma[3:]))
    np.testing.assert_allclose(
        found, expected, rtol=TOLERANCE, atol=TOLERANCE * np.abs(whole).min()
    )


@every_chain
@every_spacing
def test_the_chain_itself_and_what_walks_its_table(schedule, steps, spacing):
    """Betas, the corrector's size and level, the way up, and the jumps of RePaint."""
    chain, times = chain_and_times(schedule, steps, spacing)
    exact, table = Exact(chain, times), chain.at(times)
    betas = 1 - exact.retained
    before, after = exact.noise[:-1] ** 2, exact.noise[1:] ** 2
    assert_same_digits(table.betas[::-1], betas, "betas")
    assert_same_digits(table.posterior_variance[::-1], betas * after / before, "posterior_variance")
    assert_same_digits(
        table.posterior_mean_coef1[::-1], betas * exact.signal[1:] / before, "posterior_mean_coef1"
    )

    rows = SAMPLERS["predictor_corrector"](chain, times).rows
    step = len(times) - 1 - rows.level
    assert_same_digits(rows.noise, exact.noise[step], "noise")
    assert_same_digits(rows.size, 2 * Long(0.16) ** 2 * exact.retained[step], "size")

    up = invert(chain, times).rows
    a = np.append(Long(1), (exact.signal[:-2] / exact.signal[1:-1])[::-1])
    assert_same_digits(up.x, a, "up")
    c = exact.noise[-2::-1] - a * np.append(Long(0), exact.noise[-2:0:-1])
    assert_same_digits(up.eps, c, "up to noise")

    jumps = repaint(chain, times, resamplings=2, jump=3).rows
    jumped = jumps.noise > 0
    assert jumped.sum() == len(range(0, len(times) - 3, 3))
    start = len(times) - jumps.t[jumped]  # the level below t, counted from the noisiest
    kept = (exact.signal[start - 3] / exact.signal[start]) ** 2
    assert_same_digits(jumps.scale[jumped], np.sqrt(kept), "scale of a jump")
    assert_same_digits(jumps.noise[jumped], np.sqrt(1 - kept), "noise of a jump")
