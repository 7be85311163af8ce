"""The dialects of clipping against their definitions in NumPy and against diffusers' schedulers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.clipping import CLIPPINGS, threshold
from ddpm_jax.diffusion.gaussian import q_posterior
from ddpm_jax.diffusion.parameterization import eps_from_x_0
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.randomness import image_keys
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.loop import sample

rng = np.random.default_rng(0)
T, B, SHAPE = 50, 4, (3, 5, 2)
CHAIN = Chain(make_betas("linear", T, beta_start=1e-3, beta_end=0.2))
SCHEDULE = CHAIN.at(dtype=np.float64)
X_T, LEVELS = rng.normal(size=(B, *SHAPE)), np.array([0, 9, 30, T - 1])
X_T[0] *= 0.3  # an image that stays within [-1, 1], and others that do not


@pytest.fixture(autouse=True)
def float64():
    """Formulas are compared in float64, where only a wrong formula differs by more than 1e-9."""
    with jax.enable_x64(True):
        yield


def network(x_t, time):
    return jnp.tanh(2 * x_t) - 0.02 * time.astype(x_t.dtype)[:, None, None, None] * x_t


def plain(schedule, name="none", parameterization="eps"):
    return make_process(CHAIN, parameterization, "fixed_small").denoiser(
        network, schedule, clip=name
    )


def clipped_by(name, **options):
    return plain(SCHEDULE, name, **options)(X_T, LEVELS)


def expected_x_0(name):
    x_0 = np.asarray(plain(SCHEDULE)(X_T, LEVELS).x_0)
    if name == "none":
        return x_0
    if name != "dynamic":
        return np.clip(x_0, -1, 1)
    scale = [max(1.0, np.percentile(np.abs(image), 99.5)) for image in x_0]
    return np.stack([np.clip(image, -s, s) / s for image, s in zip(x_0, scale, strict=True)])


@pytest.mark.parametrize("name", CLIPPINGS)
def test_what_each_dialect_does_to_x_0_to_eps_and_to_the_mean(name):
    ours, unclipped, x_0 = clipped_by(name), plain(SCHEDULE)(X_T, LEVELS), expected_x_0(name)
    assert np.abs(unclipped.x_0).max() > 1.2, "something is clipped"
    np.testing.assert_allclose(ours.x_0, x_0, rtol=1e-12)
    np.testing.assert_allclose(
        ours.mean, q_posterior(SCHEDULE, x_0, X_T, LEVELS).mean, rtol=1e-9, atol=1e-12
    )
    eps = unclipped.eps if name == "keep_eps" else eps_from_x_0(SCHEDULE, X_T, LEVELS, x_0)
    np.testing.assert_allclose(ours.eps, eps, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(ours.log_variance, unclipped.log_variance)
    predicted, unclipped = (clipped_by(n, parameterization="mu") for n in (name, "none"))
    np.testing.assert_array_equal(predicted.mean, unclipped.mean)
    assert name == "none" or np.any(predicted.x_0 != unclipped.x_0)


def test_dynamic_thresholding_leaves_an_image_within_its_range():
    ours, before = clipped_by("dynamic"), plain(SCHEDULE)(X_T, LEVELS)
    inside = np.abs(before.x_0).max(axis=(1, 2, 3)) <= 1
    assert inside.tolist() == [True, False, False, False]
    np.testing.assert_array_equal(ours.x_0[inside], before.x_0[inside])


def test_the_percentile_may_be_traced_and_100_clips_nothing():
    run = jax.jit(
        lambda percentile: threshold(plain(SCHEDULE), percentile=percentile)(X_T, LEVELS).x_0
    )
    before = np.asarray(plain(SCHEDULE)(X_T, LEVELS).x_0)
    largest = np.maximum(1, np.abs(before).max(axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(run(100.0), before / largest, rtol=1e-12)
    np.testing.assert_allclose(run(99.5), expected_x_0("dynamic"), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("none", {"clip_sample": False}),
        ("keep_eps", {"clip_sample": True}),
        ("static", {"clip_sample": True, "use_clipped_model_output": True}),
        (
            "dynamic",
            {"thresholding": True, "sample_max_value": 100.0, "use_clipped_model_output": True},
        ),
    ],
)
def test_a_ddim_chain_is_that_of_diffusers(name, settings):
    torch = pytest.importorskip("torch")
    schedulers = pytest.importorskip("diffusers")
    steps, settings = 10, dict(settings)
    rederive = settings.pop("use_clipped_model_output", False)
    peer = schedulers.DDIMScheduler(
        T,
        trained_betas=CHAIN.betas,
        timestep_spacing="leading",
        **({"clip_sample": False} | settings),
    )
    peer.alphas_cumprod = torch.tensor(np.cumprod(1 - CHAIN.betas))  # its own table is float32
    peer.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    peer.set_timesteps(steps)
    x = torch.tensor(X_T)
    for t in peer.timesteps:
        eps = torch.tensor(np.asarray(network(x.numpy(), np.full(B, float(t)))))
        x = peer.step(eps, int(t), x, use_clipped_model_output=rederive).prev_sample

    sampler = ddim(CHAIN, np.sort(peer.timesteps.numpy()), dtype=np.float64)
    denoiser = plain(sampler.schedule, name)
    ours = sample(denoiser, sampler, X_T, image_keys(jax.random.key(0), jnp.arange(B))).x_0
    # diffusers' thresholding computes in float32
    np.testing.assert_allclose(ours, x.numpy(), rtol=1e-5 if name == "dynamic" else 1e-9, atol=1e-9)


@pytest.mark.parametrize("percentile", [0, -1, 100.5, math.nan])
def test_a_percentile_out_of_range_is_refused(percentile):
    with pytest.raises(UsageError, match="percentile of dynamic thresholding is"):
        threshold(plain(SCHEDULE), percentile=percentile)


def test_an_unknown_dialect_is_refused_with_the_choices():
    with pytest.raises(UsageError, match="Did you mean 'static'"):
        choose("clipping", "statik", CLIPPINGS)
