"""Every tensor of the original TensorFlow code (goldens/ho_diffusion.npz) against ours.

The original works in float32 and loses digits in two places. Its divergence sums -1, log-variances
near -10 and an exponential near 1, so each term carries about one rounding of a number near 8
(1e-6). Its decoder subtracts two probabilities near 1, so each bin carries about one rounding of 1
(1e-7), which is all of a bin in the upper tail. There the float64 evaluation of its own formula is
the judge: ours must equal it, and the golden must lie as far away as the rounding explains.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import gaussian, likelihood, losses, schedules
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process

MEANS = {"eps": "eps", "xstart": "x_0", "xprev": "mu"}
VARIANCES = {"fixedsmall": "fixed_small", "fixedlarge": "fixed_large", "learned": "learned"}
CASES = [(mean, variance) for mean in MEANS for variance in VARIANCES]
BETAS = ("linear", "quad", "const", "jsd", "warmup10", "warmup50")
T = 1000

INPUTS = {"x_0_uint8", "x_0", "eps", "z", "t"}
TABLES = (
    *(f"betas/{name}" for name in BETAS),
    "alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
FORWARD = ("q_sample", "q_posterior_mean", "q_posterior_log_variance")
REVERSE = (
    "p_mean",
    "p_log_variance",
    "pred_x_0",
    "p_sample",
    "vb_terms_bpd/clip_True",
    "vb_terms_bpd/clip_False",
    "total_bpd_same_eps",
    "terms_bpd_same_eps",
    "mse_same_eps",
)

# half the spacing of float32 numbers at 1: the largest relative error of one rounding
EPS = 2.0**-24
# Bits; half the spacing of float32 numbers near 10 is 0.5e-6 nats, and there are two such sums
KL_NOISE = 1e-6
EARLY = 2e-5  # relative, at t < 500, where the means differ by 1e-3 and more
DECODER = 1e-5
BIN_NOISE = 2 * 2.0**-24 + 2.0**-24  # two cumulative probabilities near 1 and the tanh inside them


def _value(x_t, time):
    return jnp.tanh(0.5 * x_t + 0.001 * time.reshape(-1, 1, 1, 1))


def _value_and_log_variance(x_t, time):
    return jnp.concatenate([_value(x_t, time), -4 + jnp.cos(2 * x_t)], axis=-1)


def _network(variance):
    return _value_and_log_variance if variance == "learned" else _value


def _denoiser(schedule, mean, variance, clip_denoised):
    return make_process(
        Chain(schedules.make_betas("linear", T)), MEANS[mean], VARIANCES[variance]
    ).denoiser(_network(variance), schedule, clip="static" if clip_denoised else "none")


@pytest.fixture(scope="module")
def schedule():
    return schedules.make_schedule(schedules.make_betas("linear", T))


def _tables_and_forward(schedule, x_0, eps, t):
    tables = schedules.make_schedule(schedules.make_betas("linear", T), dtype=np.float64)
    x_t = gaussian.q_sample(schedule, x_0, t, eps)
    posterior = gaussian.q_posterior(schedule, x_0, x_t, t)
    return {f"betas/{name}": schedules.make_betas(name, T) for name in BETAS} | {
        "alphas_cumprod": tables.alphas_bar,
        "posterior_variance": tables.posterior_variance,
        "posterior_log_variance_clipped": tables.posterior_log_variance_clipped,
        "posterior_mean_coef1": tables.posterior_mean_coef1,
        "posterior_mean_coef2": tables.posterior_mean_coef2,
        "q_sample": x_t,
        "q_posterior_mean": posterior.mean,
        "q_posterior_log_variance": posterior.log_variance,
        "prior_bpd": likelihood.prior_term(schedule, x_0),
    }


def _reverse(schedule, mean, variance, x_0, x_t, t, z):
    clipped = _denoiser(schedule, mean, variance, clip_denoised=True)
    p = gaussian.p_mean_variance(clipped, x_t, t)
    noise = jnp.where(t.reshape(-1, 1, 1, 1) == 0, 0.0, jnp.exp(0.5 * p.log_variance) * z)
    return {
        "p_mean": p.mean,
        "p_log_variance": p.log_variance,
        "pred_x_0": clipped(x_t, t).x_0,
        "p_sample": p.mean + noise,
    } | {
        f"vb_terms_bpd/clip_{clip}": likelihood.bound_term(
            schedule, _denoiser(schedule, mean, variance, clip)(x_t, t), x_0, x_t, t
        )
        for clip in (True, False)
    }


def _whole_bound(schedule, mean, variance, x_0, eps):
    """The original's calc_bpd_loop: every t with the same noise, x_0 clipped.

    Also the error of the predicted x_0.
    """
    denoiser = _denoiser(schedule, mean, variance, clip_denoised=True)

    @jax.jit
    def at(step):
        t = jnp.full(x_0.shape[:1], step)
        x_t = gaussian.q_sample(schedule, x_0, t, eps)
        prediction = denoiser(x_t, t)
        term = likelihood.bound_term(schedule, prediction, x_0, x_t, t)
        return term, likelihood.mean_over_dims(jnp.square(prediction.x_0 - x_0))

    terms, errors = jax.lax.map(at, jnp.arange(T))
    total = jnp.sum(terms, axis=0) + likelihood.prior_term(schedule, x_0)
    return {"total_bpd_same_eps": total, "terms_bpd_same_eps": terms.T, "mse_same_eps": errors.T}


@pytest.fixture(scope="module")
def ours(schedule, diffusion_goldens):
    """Every golden tensor computed by this package, under the golden's key."""
    x_0, eps, t, z = (jnp.asarray(diffusion_goldens[k]) for k in ("x_0", "eps", "t", "z"))
    results = _tables_and_forward(schedule, x_0, eps, t)
    for mean, variance in CASES:
        tensors = _reverse(schedule, mean, variance, x_0, jnp.asarray(results["q_sample"]), t, z)
        tensors |= _whole_bound(schedule, mean, variance, x_0, eps)
        results |= {f"{mean}/{variance}/{k}": v for k, v in tensors.items()}
    for mean in MEANS:
        process = make_process(Chain(schedules.make_betas("linear", T)), MEANS[mean], "fixed_small")
        simple = losses.make_loss("simple", variance=process.variance)
        loss = losses.training_losses(_value, schedule, x_0, t, eps, process=process, loss=simple)
        results[f"{mean}/loss_mse"] = loss.loss
    return {k: np.asarray(v) for k, v in results.items()}


class Float64:
    """The original's formulas in float64 NumPy, at every t with the same noise.

    They start from float64 tables of their own.
    """

    def __init__(self, goldens, mean, variance, clip):
        x_0, eps = goldens["x_0"].astype(np.float64), goldens["eps"].astype(np.float64)
        t = np.arange(T).reshape(-1, 1, 1, 1, 1)
        alphas_bar, coef1, coef2, log_posterior = (
            goldens[k].reshape(t.shape)
            for k in (
                "alphas_cumprod",
                "posterior_mean_coef1",
                "posterior_mean_coef2",
                "posterior_log_variance_clipped",
            )
        )
        x_t = np.sqrt(alphas_bar) * x_0 + np.sqrt(1 - alphas_bar) * eps
        output = np.tanh(0.5 * x_t + 0.001 * t)
        summands = np.abs(0.5 * x_t) + 0.001 * t  # of the network's argument, which may cancel too
        if mean == "eps":
            self.scale = (np.abs(x_t) + np.sqrt(1 - alphas_bar) * summands) / np.sqrt(alphas_bar)
            x_0_hat = (x_t - np.sqrt(1 - alphas_bar) * output) / np.sqrt(alphas_bar)
        elif mean == "xstart":
            self.scale = summands
            x_0_hat = output
        else:
            self.scale = (summands + coef2 * np.abs(x_t)) / coef1
            x_0_hat = (output - coef2 * x_t) / coef1
        self.x_0_hat = np.clip(x_0_hat, -1, 1) if clip else x_0_hat
        p_mean = output if mean == "xprev" else coef1 * self.x_0_hat + coef2 * x_t
        large = np.log(
            np.append(goldens["posterior_variance"][1], goldens["betas/linear"][1:])
        ).reshape(t.shape)
        log_variance = {
            "fixedsmall": log_posterior,
            "fixedlarge": large,
            "learned": -4 + np.cos(2 * x_t),
        }[variance]
        q_mean = coef1 * x_0 + coef2 * x_t
        kl = 0.5 * (
            -1
            + log_variance
            - log_posterior
            + np.exp(log_posterior - log_variance)
            + (q_mean - p_mean) ** 2 * np.exp(-log_variance)
        )
        self.bin_probability = self._bin_probability(
            x_0, p_mean[0], np.broadcast_to(log_variance, x_t.shape)[0]
        )
        self.terms = kl.mean(axis=(2, 3, 4)).T / np.log(2)
        self.terms[:, 0] = self.decoder_bits(self.bin_probability)

    @staticmethod
    def _bin_probability(x, mean, log_variance):
        def cdf(u):
            return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))

        upper, lower = (
            cdf((x - mean + h) * np.exp(-0.5 * log_variance)) for h in (1 / 255, -1 / 255)
        )
        return np.where(x < -0.999, upper, np.where(x > 0.999, 1 - lower, upper - lower))

    @staticmethod
    def decoder_bits(probability):
        return -np.log2(np.maximum(probability, 1e-12)).mean(axis=(1, 2, 3))


@pytest.fixture(scope="module")
def float64(diffusion_goldens):
    return {
        (*case, clip): Float64(diffusion_goldens, *case, clip)
        for case in CASES
        for clip in (True, False)
    }


def test_every_golden_belongs_to_a_test(diffusion_goldens, ours):
    tested = {*TABLES, *FORWARD, "prior_bpd", *(f"{mean}/loss_mse" for mean in MEANS)}
    tested |= {f"{mean}/{variance}/{name}" for mean, variance in CASES for name in REVERSE}
    assert tested | INPUTS == set(diffusion_goldens)
    assert tested == set(ours)


def test_data_scaling_is_the_originals(diffusion_goldens):
    scaled = diffusion_goldens["x_0_uint8"] / 127.5 - 1
    # one rounding of 1
    np.testing.assert_allclose(diffusion_goldens["x_0"], scaled, rtol=0, atol=6e-8)


@pytest.mark.parametrize("key", TABLES)
def test_float64_tables(key, ours, diffusion_goldens):
    np.testing.assert_allclose(ours[key], diffusion_goldens[key], rtol=1e-12, atol=0)


@pytest.mark.parametrize("key", FORWARD)
def test_forward_process(key, ours, diffusion_goldens):
    np.testing.assert_allclose(ours[key], diffusion_goldens[key], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["p_mean", "p_log_variance", "p_sample", "mse_same_eps"])
@pytest.mark.parametrize("case", CASES, ids="/".join)
def test_reverse_step(case, name, ours, diffusion_goldens):
    key = "/".join((*case, name))
    np.testing.assert_allclose(ours[key], diffusion_goldens[key], rtol=1e-5, atol=0)


@pytest.mark.parametrize("mean", MEANS)
def test_simple_loss(mean, ours, diffusion_goldens):
    key = f"{mean}/loss_mse"
    np.testing.assert_allclose(ours[key], diffusion_goldens[key], rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", CASES, ids="/".join)
def test_predicted_x_0(case, ours, diffusion_goldens, float64):
    """x_0 is a difference of terms up to 1e5 times its size.

    So an error is measured in roundings of those terms.

    Eight: the network's (its tanh takes four), the table's, the products' and the difference's.
    """
    key = "/".join((*case, "pred_x_0"))
    t, example = diffusion_goldens["t"], np.arange(4)
    error = np.abs(ours[key] - diffusion_goldens[key]) / (
        EPS * float64[(*case, True)].scale[t, example]
    )
    assert error.max() <= 8
    exact = np.abs(ours[key] - float64[(*case, True)].x_0_hat[t, example]) / (
        EPS * float64[(*case, True)].scale[t, example]
    )
    assert exact.max() <= 8


def test_prior_term(ours, diffusion_goldens):
    """The original sums -1, 4e-5 and a number near 1 to 2e-5 nats.

    Two roundings of 1, or 6e-5 of the value.
    """
    golden, x_0 = diffusion_goldens["prior_bpd"], diffusion_goldens["x_0"].astype(np.float64)
    alpha_bar = diffusion_goldens["alphas_cumprod"][-1]
    exact = (
        0.5
        * (-1 - np.log(1 - alpha_bar) + (1 - alpha_bar) + alpha_bar * x_0**2).mean(axis=(1, 2, 3))
        / np.log(2)
    )
    np.testing.assert_allclose(ours["prior_bpd"], exact, rtol=1e-6)
    np.testing.assert_allclose(golden, exact, rtol=1e-4, atol=0)
    assert np.abs(golden / exact - 1).min() > 1e-5  # which is why the golden is not held to 1e-5


@pytest.mark.parametrize("case", CASES, ids="/".join)
def test_divergences(case, ours, diffusion_goldens, float64):
    """t > 0, to 1e-5 beyond the original's rounding of a number near 10 (KL_NOISE).

    Late terms are 1e-6 bits, where that noise is up to 40 % of them. Ours are exact to 5e-4 there:
    the two means, of size 1 and rounded to 6e-8, differ by only about 2e-4.
    """
    key = "/".join((*case, "terms_bpd_same_eps"))
    golden = diffusion_goldens[key][:, 1:]
    np.testing.assert_allclose(ours[key][:, 1:], golden, rtol=1e-5, atol=KL_NOISE)
    np.testing.assert_allclose(
        ours[key][:, 1:], float64[(*case, True)].terms[:, 1:], rtol=5e-4, atol=0
    )
    early = np.s_[:, 1:500]
    np.testing.assert_allclose(
        ours[key][early], float64[(*case, True)].terms[early], rtol=EARLY, atol=0
    )
    for clip in (True, False):
        key = "/".join((*case, f"vb_terms_bpd/clip_{clip}"))
        np.testing.assert_allclose(
            ours[key][1:], diffusion_goldens[key][1:], rtol=1e-5, atol=KL_NOISE
        )


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("case", CASES, ids="/".join)
def test_decoder_term(case, clip, ours, diffusion_goldens, float64):
    """t = 0, the first example, where the original's bins are off by BIN_NOISE.

    Ours are exact.
    """
    key = "/".join((*case, f"vb_terms_bpd/clip_{clip}"))
    _check_decoder(ours[key][:1], diffusion_goldens[key][:1], float64[(*case, clip)])
    if clip:
        key = "/".join((*case, "terms_bpd_same_eps"))
        _check_decoder(ours[key][:, 0], diffusion_goldens[key][:, 0], float64[(*case, clip)])


def _check_decoder(result, golden, exact):
    examples = np.s_[: result.size]
    np.testing.assert_allclose(
        result, exact.decoder_bits(exact.bin_probability)[examples], rtol=DECODER, atol=0
    )
    least, most = (
        exact.decoder_bits(exact.bin_probability + noise)[examples]
        for noise in (BIN_NOISE, -BIN_NOISE)
    )
    assert np.all(least * (1 - 1e-5) <= golden)
    assert np.all(golden <= most * (1 + 1e-5))


@pytest.mark.parametrize("case", CASES, ids="/".join)
def test_whole_bound(case, ours, diffusion_goldens, float64):
    """The sum over t plus the prior.

    Without the t = 0 term it is the golden's, with it the exact one.
    """
    key = "/".join((*case, ""))
    total, terms = key + "total_bpd_same_eps", key + "terms_bpd_same_eps"
    np.testing.assert_allclose(
        ours[total] - ours[terms][:, 0],
        diffusion_goldens[total] - diffusion_goldens[terms][:, 0],
        rtol=1e-5,
    )
    exact = float64[(*case, True)].terms.sum(axis=1) + ours["prior_bpd"]
    np.testing.assert_allclose(ours[total], exact, rtol=1e-5)
