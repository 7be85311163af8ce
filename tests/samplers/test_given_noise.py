"""Chains with given noise against plain loops in NumPy, step by step, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import randomness
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.editing import repaint
from ddpm_jax.samplers.loop import advance, begin, finish, sample
from ddpm_jax.samplers.registry import SAMPLERS, make_sampler

T, B, SHAPE = 60, 3, (2, 4, 1)
BETAS = make_betas("linear", T, beta_start=1e-3, beta_end=0.2)
CHAIN = Chain(BETAS)
TIMES = [0, 4, 11, 23, 40, 59]
rng = np.random.default_rng(0)
X_T = rng.normal(size=(B, *SHAPE))


def eps_theta(xp, x, time):
    """A network, written once for JAX and for NumPy."""
    return xp.tanh(1.5 * x) * 0.8 + 0.1 * xp.sin(0.05 * time)[:, None, None, None]


def make_denoiser(schedule, variance="fixed_large"):
    def network(x, time):
        return eps_theta(jnp, x, time if time.ndim == 1 else time[:, 0])  # of two times the first

    return make_process(CHAIN, "eps", variance).denoiser(network, schedule, clip="static")


def predicted_x_0(x, time, alpha_bar):
    """The network's x_0, clipped, and the ε of the clipped x_0."""
    eps = eps_theta(np, x, np.full(B, float(time)))
    x_0 = np.clip((x - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar), -1, 1)
    return x_0


def ancestral_by_hand(z):
    """Ho et al. 2020, algorithm 2 with σ_t² = β_t, over TIMES: every x_t."""
    alphas_bar = np.cumprod(1 - BETAS)[TIMES]
    x, path = X_T, [X_T]
    for row, i in enumerate(range(len(TIMES) - 1, -1, -1)):
        before = alphas_bar[i - 1] if i else 1.0
        beta = 1 - alphas_bar[i] / before
        x_0 = predicted_x_0(x, TIMES[i], alphas_bar[i])
        mean = (np.sqrt(before) * beta * x_0 + np.sqrt(1 - beta) * (1 - before) * x) / (
            1 - alphas_bar[i]
        )
        x = mean + np.sqrt(beta) * z[row] if i else mean
        path.append(x)
    return np.stack(path)


def dpmpp_2m_sde_by_hand(z, eta):
    """Lu et al. 2022b, SDE-DPM-Solver++(2M), over TIMES: every x_t."""
    alphas_bar = np.cumprod(1 - BETAS)[TIMES][::-1]
    signal, noise = np.sqrt(alphas_bar), np.sqrt(1 - alphas_bar)
    lam = np.log(signal / noise)
    x, path, older = X_T, [X_T], None
    for i, time in enumerate(TIMES[::-1]):
        x_0 = predicted_x_0(x, time, alphas_bar[i])
        if i == len(TIMES) - 1:
            x = x_0
        else:
            h = lam[i + 1] - lam[i]
            best = x_0
            if i:
                best = x_0 + (x_0 - older) * h / (2 * (lam[i] - lam[i - 1]))
            x = (
                noise[i + 1] / noise[i] * np.exp(-eta * h) * x
                + signal[i + 1] * (1 - np.exp(-(1 + eta) * h)) * best
                + noise[i + 1] * np.sqrt(1 - np.exp(-2 * eta * h)) * z[i]
            )
        older = x_0
        path.append(x)
    return np.stack(path)


@pytest.mark.parametrize(
    ("name", "options", "by_hand"),
    [
        ("ancestral", {}, ancestral_by_hand),
        ("dpmpp_2m_sde", {"eta": 0.7}, lambda z: dpmpp_2m_sde_by_hand(z, 0.7)),
    ],
)
def test_every_moment_of_a_chain_is_that_of_a_loop_in_numpy_with_the_same_noise(
    name, options, by_hand
):
    z = rng.normal(size=(len(TIMES), B, *SHAPE))
    with jax.enable_x64(True):
        sampler = make_sampler(name, CHAIN, spacing=TIMES, options=options, dtype=np.float64)
        denoiser = make_denoiser(sampler.schedule)
        found = jax.jit(lambda x, z: sample(denoiser, sampler, x, step_noise=z, trajectory=True))(
            X_T, z
        )
    assert found.frames_x_t.dtype == np.float64
    # 1e-10: float64 to the end. In float32 it would be 1e-6.
    np.testing.assert_allclose(found.frames_x_t, by_hand(z), rtol=1e-10, atol=1e-10)


def samplers():
    for name in SAMPLERS:
        yield pytest.param(make_sampler(name, CHAIN, spacing=TIMES), id=name)
    yield pytest.param(
        make_sampler("edm", CHAIN, spacing=TIMES, options={"s_churn": 20.0}), id="edm with noise"
    )
    yield pytest.param(repaint(CHAIN, np.array(TIMES), resamplings=3, jump=2), id="repaint")


@pytest.mark.full
@pytest.mark.parametrize("sampler", [*samplers()])
def test_given_noise_stands_in_the_place_of_that_of_the_keys(sampler):
    keys = randomness.image_keys(randomness.base_key(0), jnp.arange(B))
    x_T, denoiser = np.float32(X_T), make_denoiser(sampler.schedule)
    drawn = jax.jit(lambda x: sample(denoiser, sampler, x, keys).x_0)(x_T)
    if not sampler.draws:
        np.testing.assert_array_equal(
            jax.jit(lambda x: sample(denoiser, sampler, x).x_0)(x_T), drawn
        )
        with pytest.raises(UsageError, match="draws no noise in its steps: leave step_noise out"):
            sample(denoiser, sampler, x_T, step_noise=np.zeros((sampler.num_rows, *x_T.shape)))
        return
    with pytest.raises(UsageError, match="This sampler draws noise in its steps: give keys"):
        sample(denoiser, sampler, x_T)
    each = [randomness.row_keys(keys, t) for t in range(sampler.num_rows - 1, -1, -1)]
    z = [
        [
            randomness.normal(randomness.row_keys(k, number) if number else k, SHAPE)
            for number in range(sampler.draws)
        ]
        for k in each
    ]
    z = np.asarray(z)
    z = z if sampler.draws > 1 else z[:, 0]
    given = jax.jit(lambda x, z: sample(denoiser, sampler, x, step_noise=z).x_0)(x_T, z)
    # drawn or given, the noise is the same, but XLA fuses the sum with the drawing
    np.testing.assert_allclose(given, drawn, rtol=1e-5, atol=1e-5)

    @jax.jit
    def in_two(x, z):
        walk, middle = begin(sampler, x), sampler.num_rows // 2
        for first, last in ((0, middle), (middle, sampler.num_rows)):
            walk = advance(denoiser, sampler, walk, None, first, last, step_noise=z)
        return finish(sampler, walk).x_0

    np.testing.assert_allclose(in_two(x_T, z), drawn, rtol=1e-5, atol=1e-5)


def test_the_samplers_that_draw_are_the_stochastic_ones():
    drawing = {name for name in SAMPLERS if make_sampler(name, CHAIN, spacing=TIMES).draws}
    assert drawing == {
        "ancestral",
        "consistency",
        "euler_ancestral",
        "dpmpp_2m_sde",
        "dpmpp_3m_sde",
        "interpolant_sde",
        "predictor_corrector",
    }
    assert make_sampler("ddim", CHAIN, spacing=TIMES, options={"eta": 0.5}).draws == 1
