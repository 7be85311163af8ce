"""Beta schedules, their tables and respacing, against independently written formulae."""

import warnings

import numpy as np
import pytest
from scipy.special import expit

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.errors import UsageError


def alphas_bar(name, num_timesteps=1000, **end_points):
    return np.cumprod(1 - schedules.make_betas(name, num_timesteps, **end_points))


def test_linear_ends_where_the_original_ends():
    assert alphas_bar("linear")[-1] == pytest.approx(4.0358e-5, rel=1e-5)  # digits of the reference


def test_quad_and_scaled_linear_rise_linearly_in_the_square_root():
    for name, start, end in (("quad", 1e-4, 0.02), ("scaled_linear", 0.00085, 0.012)):
        steps = np.diff(np.sqrt(schedules.make_betas(name, 1000)))
        np.testing.assert_allclose(steps, (end**0.5 - start**0.5) / 999, rtol=1e-9)


def test_scaled_linear_reaches_the_noise_of_latent_diffusion():
    last = alphas_bar("scaled_linear")[-1]
    assert np.sqrt((1 - last) / last) == pytest.approx(14.6146, abs=5e-5)


def test_jsd_removes_an_equal_share_of_the_signal_each_step():
    np.testing.assert_allclose(
        alphas_bar("jsd", 100), 1 - np.arange(1, 101) / 100, rtol=0, atol=1e-14
    )


@pytest.mark.parametrize(("name", "rising"), [("warmup10", 20), ("warmup50", 100)])
def test_warmup_rises_linearly_and_stays(name, rising):
    betas = schedules.make_betas(name, 200)
    np.testing.assert_allclose(
        betas[:rising], 1e-4 + (0.02 - 1e-4) * np.arange(rising) / (rising - 1), rtol=1e-12
    )
    assert np.all(betas[rising:] == 0.02)


def test_const_is_constant():
    assert np.all(schedules.make_betas("const", 7, beta_end=0.3) == 0.3)


@pytest.mark.parametrize("num_timesteps", [50, 1000, 4000])
def test_cosine_is_the_papers_alphas_bar(num_timesteps):
    """Eq. 17 at t = 1..T, but for the last step, whose beta of 1 is held at 0.999."""
    t = np.arange(1, num_timesteps + 1)
    f = np.cos((t / num_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
    f_0 = np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    result = alphas_bar("cosine", num_timesteps)
    # 1e-9: each of T factors is rounded to 1e-16 and the last are differences of small numbers
    np.testing.assert_allclose(result[:-1], (f / f_0)[:-1], rtol=1e-9)
    assert result[-1] / result[-2] == pytest.approx(1 - 0.999, rel=1e-9)


def test_sigmoid_is_a_logistic_curve():
    expected = 1e-4 + (0.02 - 1e-4) * expit(12 * np.arange(300) / 299 - 6)
    np.testing.assert_allclose(schedules.make_betas("sigmoid", 300), expected, rtol=1e-12)


@pytest.mark.parametrize("num_timesteps", [20, 1000])
def test_alphas_bar_is_jabris_logistic_curve(num_timesteps):
    """Their algorithm 1 with start -3, end 3 and τ 1, but for the last beta, held at 0.999."""
    u = np.arange(1, num_timesteps + 1) / num_timesteps
    curve = (expit(3) - expit(6 * u - 3)) / (expit(3) - expit(-3))
    result = alphas_bar("sigmoid_alphas_bar", num_timesteps)
    np.testing.assert_allclose(result[:-1], curve[:-1], rtol=1e-9)
    assert result[-1] / result[-2] == pytest.approx(1 - 0.999, rel=1e-9)


OF_ALPHAS_BAR = ("jsd", "cosine", "sigmoid_alphas_bar")  # they depend on T by themselves
SCALED = [name for name in schedules.BETA_SCHEDULES if name not in OF_ALPHAS_BAR]


@pytest.mark.parametrize("num_timesteps", [100, 500, 4000])
@pytest.mark.parametrize("name", SCALED)
def test_scaled_betas_follow_the_same_process_in_fewer_or_more_steps(name, num_timesteps):
    """log ᾱ after the same share of the chain is that of 1000 steps.

    Up to the difference of sums over T and over 1000 points.
    """
    part = np.arange(1, 21) / 20
    whole, scaled = (
        np.log(np.cumprod(1 - betas))[(part * len(betas)).astype(int) - 1]
        for betas in (
            schedules.make_betas(name, 1000),
            schedules.make_betas(name, num_timesteps, scale_betas=True),
        )
    )
    # half a step at either end: β times 1000/T/2; the noisiest step of all has the largest β
    largest = schedules.make_betas(name, 1000).max()
    np.testing.assert_allclose(
        scaled, whole, rtol=2e-3, atol=1.01 * largest * 1000 / min(num_timesteps, 1000) / 2
    )


@pytest.mark.parametrize("name", SCALED)
def test_scaled_betas_are_betas_and_end_in_noise_at_any_number_of_steps(name):
    """Improved DDPM's rule has a beta of 2 at 10 steps."""
    for num_timesteps in (2, 10, 20, 10_000):
        betas = schedules.make_betas(name, num_timesteps, scale_betas=True)
        assert betas.shape == (num_timesteps,)
        assert np.all((betas > 0) & (betas < 1))
        assert np.prod(1 - betas) < 0.005


def test_scaled_betas_are_the_published_ones_at_1000_steps_and_improved_ddpms_to_first_order():
    np.testing.assert_array_equal(
        schedules.make_betas("linear", 1000, scale_betas=True), schedules.make_betas("linear", 1000)
    )
    theirs = np.linspace(1e-4 / 4, 0.02 / 4, 4000)  # its `linear` of 4000 steps
    scaled = schedules.make_betas("linear", 4000, scale_betas=True)
    # (1 - 1/4) β / 2 is the second order of 1 - (1-β)^(1/4) over its first
    np.testing.assert_allclose(scaled / theirs - 1, 0.375 * 4 * theirs, rtol=0.02)


def test_scaled_betas_keep_an_end_point_of_one():
    assert schedules.make_betas("linear", 10, beta_end=1.0, scale_betas=True)[-1] == 1


@pytest.mark.parametrize(
    ("name", "theirs", "end_points"),
    [
        ("linear", "linear", {"beta_start": 1e-4, "beta_end": 0.02}),
        ("scaled_linear", "scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}),
        ("cosine", "squaredcos_cap_v2", {}),
        ("sigmoid", "sigmoid", {"beta_start": 1e-4, "beta_end": 0.02}),
    ],
)
def test_betas_equal_those_of_diffusers(name, theirs, end_points):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other library's own imports
        diffusers = pytest.importorskip("diffusers", reason="the extra `parity` is not installed")
    peer = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs, **end_points)
    # theirs are float32; the cosine's first betas of 4e-5 are differences of float64 numbers near 1
    np.testing.assert_allclose(
        schedules.make_betas(name, 1000, **end_points), peer.betas.numpy(), rtol=2e-6
    )


@pytest.mark.parametrize("name", schedules.BETA_SCHEDULES)
def test_tables_satisfy_their_definitions(name):
    betas = schedules.make_betas(name, 40)
    s = schedules.make_schedule(betas, dtype=np.float64)
    product, before = 1.0, 1.0
    for t in range(39):  # jsd ends at alphas_bar = 0, where the reciprocals are infinite
        before, product = product, product * (1 - betas[t])
        noise = 1 - product
        expected = {
            "timesteps": t,
            "betas": betas[t],
            "alphas_bar": product,
            "alphas_bar_prev": before,
            "sqrt_alphas_bar": product**0.5,
            "sqrt_one_minus_alphas_bar": noise**0.5,
            "log_one_minus_alphas_bar": np.log(noise),
            "sqrt_recip_alphas_bar": product**-0.5,
            "sqrt_recipm1_alphas_bar": (noise / product) ** 0.5,
            "snr": product / noise,
            "posterior_mean_coef1": before**0.5 * betas[t] / noise,
            "posterior_mean_coef2": (1 - betas[t]) ** 0.5 * (1 - before) / noise,
            "trained_mean_coef1": before**0.5 * betas[t] / noise,
            "trained_mean_coef2": (1 - betas[t]) ** 0.5 * (1 - before) / noise,
            "posterior_variance": betas[t] * (1 - before) / noise,
            "posterior_log_variance_clipped": np.log(betas[max(t, 1)] * (1 - before) / noise)
            if t
            else None,
            "fixed_large_log_variance": np.log(betas[t]) if t else None,
            "log_betas": np.log(betas[t]),
            "half_log_snr": 0.5 * np.log(product / noise),
            "trained_posterior_variance": betas[t] * (1 - before) / noise,
        }
        assert set(expected) == set(s._fields)
        for field, value in expected.items():
            if value is not None:
                # 1e-9: alphas_bar is near 1 at first, and 1 - alphas_bar keeps 12 of 16 digits
                near_0 = 1e-12 if field == "half_log_snr" else 0  # which it passes through
                np.testing.assert_allclose(
                    getattr(s, field)[t], value, rtol=1e-9, atol=near_0, err_msg=f"{field}[{t}]"
                )
    assert s.posterior_variance[0] == 0
    assert s.posterior_log_variance_clipped[0] == np.log(s.posterior_variance[1])
    assert s.fixed_large_log_variance[0] == np.log(s.posterior_variance[1])


@pytest.mark.parametrize("name", schedules.BETA_SCHEDULES)
def test_tables_are_float32_and_finite(name):
    s = schedules.make_schedule(schedules.make_betas(name, 30))
    for field, table in s._asdict().items():
        assert table.shape == (30,)
        assert table.dtype == np.float32
        infinite = name == "jsd" and field.startswith(("sqrt_recip", "half_log_snr"))
        assert np.all(np.isfinite(table[:-1] if infinite else table)), field


def test_tables_are_rounded_only_once():
    betas = schedules.make_betas("linear", 1000)
    single, double = (
        schedules.make_schedule(betas, dtype=dtype) for dtype in (np.float32, np.float64)
    )
    for field in single._fields:
        np.testing.assert_array_equal(
            getattr(single, field), getattr(double, field).astype(np.float32)
        )


KEPT = np.array([0, 3, 4, 17, 39])


@pytest.mark.parametrize("name", ["linear", "cosine", "jsd"])
def test_respacing_keeps_the_distribution_at_the_kept_steps(name):
    betas = schedules.make_betas(name, 40)
    full = schedules.make_schedule(betas, dtype=np.float64)
    kept = schedules.make_schedule(betas, timesteps=KEPT, dtype=np.float64)
    np.testing.assert_array_equal(kept.alphas_bar, full.alphas_bar[KEPT])
    # 1e-10: the cosine's last beta is 1 - 3e-6, which keeps ten digits of the 3e-6
    np.testing.assert_allclose(np.cumprod(1 - kept.betas), full.alphas_bar[KEPT], rtol=1e-10)
    np.testing.assert_array_equal(kept.timesteps, KEPT)
    assert kept.num_timesteps == 5


def test_keeping_every_step_is_the_full_chain():
    betas = schedules.make_betas("linear", 300)
    full = schedules.make_schedule(betas, dtype=np.float64)
    kept = schedules.make_schedule(
        betas, timesteps=schedules.spaced_timesteps(300, 300), dtype=np.float64
    )
    for field in full._fields:
        # 1e-11: a beta of 1e-4 comes back from a ratio near 1 with 12 digits
        np.testing.assert_allclose(getattr(kept, field), getattr(full, field), rtol=1e-11)


def test_between_two_steps_log_sigma_is_linear():
    chain = Chain(schedules.make_betas("linear", 40))
    kept = chain.at([3, 7.25, 12.5, 39.0], dtype=np.float64)
    log_sigma = 0.5 * np.log((1 - kept.alphas_bar) / kept.alphas_bar)
    table = chain.log_sigmas
    expected = [
        table[3],
        0.75 * table[7] + 0.25 * table[8],
        0.5 * table[12] + 0.5 * table[13],
        table[39],
    ]
    np.testing.assert_allclose(log_sigma, expected, rtol=1e-12)
    np.testing.assert_array_equal(
        kept.alphas_bar[[0, 3]], chain.at(dtype=np.float64).alphas_bar[[3, 39]]
    )
    np.testing.assert_allclose(
        chain.times_from_sigmas(np.exp(log_sigma)), [3, 7.25, 12.5, 39], rtol=1e-12
    )


def test_a_respaced_chain_remembers_the_step_that_was_trained():
    betas = schedules.make_betas("linear", 40)
    whole, kept = (
        schedules.make_schedule(betas, timesteps=t, dtype=np.float64) for t in (None, KEPT)
    )
    np.testing.assert_array_equal(kept.trained_mean_coef1, whole.posterior_mean_coef1[KEPT])
    np.testing.assert_array_equal(kept.trained_mean_coef2, whole.posterior_mean_coef2[KEPT])
    np.testing.assert_array_equal(kept.trained_posterior_variance, whole.posterior_variance[KEPT])
    # To the last digit where the step before is kept too, and nowhere else: so a step is known to
    # be the trained one.
    own = np.diff(KEPT, prepend=-1) == 1
    np.testing.assert_array_equal(kept.trained_mean_coef1 == kept.posterior_mean_coef1, own)
    np.testing.assert_array_equal(kept.betas == betas[KEPT], own)


def test_a_chain_of_one_step_has_finite_tables():
    s = schedules.make_schedule(schedules.make_betas("linear", 100), timesteps=[99])
    assert all(np.all(np.isfinite(table)) for table in s)
    assert s.betas[0] == pytest.approx(1 - alphas_bar("linear", 100)[-1])


def test_spacing_keeps_both_ends_and_never_repeats():
    for num_timesteps in (2, 7, 50, 1000):
        for steps in range(2, min(num_timesteps, 60) + 1):
            kept = schedules.spaced_timesteps(num_timesteps, steps)
            assert kept.size == steps
            assert (kept[0], kept[-1]) == (0, num_timesteps - 1)
            gaps = np.diff(kept)
            assert gaps.min() >= 1
            assert gaps.max() - gaps.min() <= 1  # even, up to rounding
    assert schedules.spaced_timesteps(1000, 1).tolist() == [999]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: schedules.make_betas("cosinus", 10),
            r"Unknown beta schedule 'cosinus'.*Did you mean 'cosine'\?",
        ),
        (lambda: schedules.make_betas("linear", 1), "num_timesteps is 1: .* at least 2"),
        (
            lambda: schedules.make_betas("cosine", 10, beta_end=0.1),
            "The cosine schedule takes no beta_end",
        ),
        (
            lambda: schedules.make_betas("const", 10, beta_start=0.1),
            "The const schedule takes no beta_start",
        ),
        (
            lambda: schedules.make_betas("jsd", 10, beta_start=0.1),
            "The jsd schedule takes no beta_start",
        ),
        (
            lambda: schedules.make_betas("jsd", 10, scale_betas=True),
            "jsd schedule follows .* leave scale_betas false",
        ),
        (
            lambda: schedules.make_betas("cosine", 10, scale_betas=True),
            "cosine .* leave scale_betas false",
        ),
        (
            lambda: schedules.make_betas("linear", 10, beta_start=0.0),
            r"beta_start is 0.0: a beta lies in \(0, 1\]",
        ),
        (
            lambda: schedules.make_betas("linear", 10, beta_end=1.5),
            r"beta_end is 1.5: a beta lies in \(0, 1\]",
        ),
        (lambda: schedules.make_schedule([]), r"at least two numbers, but have shape \(0,\)"),
        (
            lambda: schedules.make_schedule([[0.1, 0.2]]),
            r"at least two numbers, but have shape \(1, 2\)",
        ),
        (lambda: schedules.make_schedule([0.1, -0.2]), "they span -0.2 to 0.1"),
        (lambda: schedules.make_schedule([0.1, float("nan")]), "they span nan to nan"),
        (
            lambda: schedules.make_schedule([1.0, 0.2]),
            "they span 0.2 to 1.0: after a beta of 1 nothing is left",
        ),
        (
            lambda: schedules.make_schedule([0.1, 0.2, 0.3], timesteps=[0, 2, 1]),
            r"increasing, not \[0, 2, 1\]",
        ),
        (
            lambda: schedules.make_schedule([0.1, 0.2, 0.3], timesteps=[1, 1]),
            r"increasing, not \[1, 1\]",
        ),
        (lambda: schedules.make_schedule([0.1, 0.2, 0.3], timesteps=[]), r"increasing, not \[\]"),
        (
            lambda: schedules.make_schedule([0.1, 0.2, 0.3], timesteps=[0, 3]),
            r"lie in 0..2, not \[0, 3\]",
        ),
        (
            lambda: schedules.make_schedule([0.1, 0.2, 0.3], timesteps=[-1, 2]),
            r"lie in 0..2, not \[-1, 2\]",
        ),
        (lambda: schedules.spaced_timesteps(10, 0), "steps is 0: .* choose 1 to 10"),
        (lambda: schedules.spaced_timesteps(10, 11), "steps is 11: .* choose 1 to 10"),
    ],
)
def test_mistakes_are_named(build, sentence):
    with pytest.raises(UsageError, match=sentence):
        build()


def test_zero_terminal_snr_is_the_papers():
    """Lin et al. 2024, algorithm 1: √ᾱ is an affine function of what it was."""
    betas = schedules.make_betas("scaled_linear", 1000)
    before = np.sqrt(np.cumprod(1 - betas))
    rescaled = schedules.make_betas("scaled_linear", 1000, zero_terminal_snr=True)
    after = np.sqrt(np.cumprod(1 - rescaled))
    assert rescaled[-1] == 1
    assert rescaled[0] == betas[0]
    slope = before[0] / (before[0] - before[-1])
    np.testing.assert_allclose(after, slope * (before - before[-1]), rtol=1e-9, atol=1e-15)
    schedules.make_schedule(rescaled)


def test_zero_terminal_snr_is_that_of_diffusers():
    torch = pytest.importorskip("torch")
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    betas = schedules.make_betas("linear", 100, scale_betas=True)
    theirs = scheduling.rescale_zero_terminal_snr(torch.tensor(betas))
    np.testing.assert_allclose(
        schedules.zero_terminal_snr_betas(betas), theirs.numpy(), rtol=1e-9, atol=1e-12
    )
