"""What a user may ask of a sampler, and the sentence where he may not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain, continuous_chain
from ddpm_jax.diffusion.interpolants import INTERPOLANTS
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import image_keys, initial_noise
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import FROM_PURE_NOISE, SAMPLERS, default_options, make_sampler
from ddpm_jax.samplers.spacing import space

CHAIN = Chain(make_betas("linear", 100))


def test_the_options_are_the_keyword_arguments_and_their_defaults():
    assert default_options("ddim") == {"eta": 0.0}
    assert default_options("unipc") == {"order": 2, "variant": "bh2"}
    assert default_options("dpmpp_2m") == {}
    assert default_options("edm") == {
        "s_churn": 0.0,
        "s_min": 0.0,
        "s_max": np.inf,
        "s_noise": 1.0,
        "rounded": False,
    }


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_says_what_it_is(name):
    assert name == "ancestral" or len(SAMPLERS[name].__doc__) > 80
    assert "dtype" not in default_options(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dimm", {}, "Unknown sampler 'dimm': choose one of .*Did you mean 'ddim'"),
        ("ddpm", {}, r"Did you mean 'ancestral'\?$"),
        ("DDPMScheduler", {}, r"Did you mean 'ancestral'\?$"),
        ("DDIM", {}, r"Did you mean 'ddim'\?$"),
        ("euler_a", {}, r"Did you mean 'euler_ancestral'\?$"),
        ("k_euler", {}, r"Did you mean 'euler'\?$"),
        ("EulerAncestralDiscreteScheduler", {}, r"Did you mean 'euler_ancestral'\?$"),
        ("dpm++ 2m", {}, r"Did you mean 'dpmpp_2m'\?$"),
        ("DPM++ 2M Karras", {}, r"Did you mean 'dpmpp_2m' with the spacing 'karras'\?$"),
        (
            "DPM++ 2M SDE Exponential",
            {},
            r"Did you mean 'dpmpp_2m_sde' with the spacing 'exponential'\?$",
        ),
        ("sample_dpmpp_3m_sde", {}, r"Did you mean 'dpmpp_3m_sde'\?$"),
        ("dpmsolver++", {}, r"Did you mean 'dpmpp_2m'\?$"),
        ("DPMSolverMultistepScheduler", {}, r"Did you mean 'dpmpp_2m'\?$"),
        ("uni_pc", {}, r"Did you mean 'unipc'\?$"),
        ("UniPCMultistepScheduler", {}, r"Did you mean 'unipc'\?$"),
        ("LMS", {}, r"Did you mean 'lms'\?$"),
        ("nonsense", {}, r"choose one of [^?]*unipc\.$"),
        ("dpmpp_2m", {"eta": 1.0}, "The sampler dpmpp_2m has no option eta: it has no options"),
        (
            "edm",
            {"churn": 1.0},
            "The sampler edm has no option churn: its options are s_churn, s_min, s_max, s_noise",
        ),
        ("ddim", {"dtype": np.float64}, "has no option dtype"),
        ("ddim", {"eta": -0.1}, "eta is -0.1: choose 0 .* to 1"),
        ("ddim", {"eta": 1.1}, "eta is 1.1: choose 0 .* to 1"),
        ("ddim", {"eta": float("nan")}, "eta is nan"),
        ("euler_ancestral", {"eta": -1.0}, "eta is -1.0: choose"),
        ("euler_ancestral", {"eta": float("nan")}, "eta is nan"),
        ("dpmpp_2m_sde", {"eta": -1.0}, "eta is -1.0: choose"),
        ("dpmpp_3m_sde", {"eta": float("inf")}, "eta is inf"),
        ("lms", {"order": 0}, "order is 0: lms combines 1 to 4"),
        ("lms", {"order": 5}, "order is 5"),
        ("lms", {"order": 2.5}, "order is 2.5"),
        ("unipc", {"order": 4}, "order is 4: unipc has the orders 1 to 3"),
        ("unipc", {"variant": "bh3"}, "Unknown variant of unipc 'bh3': choose one of bh1, bh2"),
        ("edm", {"s_churn": -1.0}, "s_churn is -1.0: choose a number that is not negative"),
        ("edm", {"s_noise": float("nan")}, "s_noise is nan"),
        ("edm", {"s_min": "low"}, "s_min is low: choose a number"),
        ("edm", {"s_min": 5.0, "s_max": 1.0}, "s_min is 5.0 and s_max 1.0, so no level"),
        ("edm", {"rounded": "maybe"}, "rounded is 'maybe': it must be True or False"),
        ("runge_kutta", {"s_min": 5.0, "s_max": 1.0}, "s_min is 5.0 and s_max 1.0, so no level"),
        ("runge_kutta", {"scaled": "maybe"}, "scaled is 'maybe': it must be True or False"),
        ("runge_kutta", {"alpha": "half"}, "alpha is half: choose a number"),
        ("interpolant_sde", {"norm": "much"}, "norm is much: choose a number"),
        ("predictor_corrector", {"snr": 0.0}, "snr is 0.0: .* positive"),
        ("predictor_corrector", {"snr": float("inf")}, "snr is inf"),
        (
            "predictor_corrector",
            {"corrector_steps": -1},
            "corrector_steps is -1: choose a whole number",
        ),
        (
            "predictor_corrector",
            {"corrector_steps": 1.5},
            "corrector_steps is 1.5: choose a whole number",
        ),
    ],
)
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        make_sampler(name, CHAIN, steps=10, options=options)


@pytest.mark.parametrize("name", ["heun", "edm", "dpm2"])
def test_the_first_of_two_evaluations_a_step_is_alone_where_a_flow_begins(name):
    assert make_sampler(name, CHAIN, steps=10).evaluations == 19
    flow = continuous_chain(INTERPOLANTS["flow"], 100)
    assert make_sampler(name, flow, steps=10).evaluations == 18


@pytest.mark.parametrize("steps", [0, 101])
def test_steps_outside_the_chain_are_refused(steps):
    with pytest.raises(
        UsageError, match=f"steps is {steps}: the chain has 100 timesteps, so choose 1 to 100"
    ):
        make_sampler("ddim", CHAIN, steps=steps)


@pytest.mark.full
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_chain_that_destroys_the_signal_is_walked(name, steps):
    """At alphas_bar = 0 a network may predict x_0.

    Then ancestral sampling has a first step, and an ODE in σ that of DDIM, before its own.
    """
    chain = Chain(make_betas("jsd", 20))
    sampler = make_sampler(name, chain, steps=steps)
    assert sampler.num_rows == sampler.evaluations
    for leaf in jax.tree.leaves(sampler.rows):
        assert np.isfinite(leaf).all()
    denoiser = make_process(chain, "x_0", "fixed_small").denoiser(
        lambda x, _: jnp.tanh(x), sampler.schedule, clip="static"
    )
    keys = image_keys(jax.random.key(0), jnp.arange(3))
    x_T = initial_noise(keys, (4, 4, 1))
    found = sample(denoiser, sampler, x_T, keys, trajectory=True)
    assert np.isfinite(found.x_0).all()
    if name in FROM_PURE_NOISE:
        assert np.abs(found.x_0).max() <= 1
    else:
        (level,) = (
            chain.at().alphas_bar[space(chain, "linspace", steps)[-2:-1]] if steps > 1 else [1]
        )
        first = np.sqrt(level) * np.tanh(x_T) + np.sqrt(1 - level) * x_T
        np.testing.assert_allclose(found.frames_x_t[1], first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_chain_may_be_as_long_as_the_trained_one(name):
    sampler = make_sampler(name, CHAIN, steps=100)
    assert sampler.num_rows == sampler.evaluations >= 100
    for leaf in jax.tree.leaves((sampler.rows, sampler.schedule.sqrt_alphas_bar)):
        assert np.isfinite(leaf).all()
        assert leaf.dtype in (np.float32, np.int32, np.bool_)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ancestral"])
def test_every_maker_refuses_a_schedule_where_it_needs_a_chain(name):
    with pytest.raises(UsageError, match=r"A Chain is needed, .* not a Schedule"):
        SAMPLERS[name](CHAIN.at(), np.arange(0, 100, 20))


def test_ancestral_refuses_a_chain_where_it_needs_a_schedule():
    with pytest.raises(UsageError, match=r"walks a Schedule, not a Chain: .*chain\.at\(\)"):
        ancestral(CHAIN)


def test_steps_follow_from_a_list_of_times():
    assert make_sampler("ddim", CHAIN, spacing=[0, 20, 70]).num_rows == 3
    assert make_sampler("ddim", CHAIN, spacing="sections:2,3").num_rows == 5
    with pytest.raises(UsageError, match="steps is missing: the spacing linspace needs 1 to 100"):
        make_sampler("ddim", CHAIN)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_dtype_reaches_every_table(name):
    with jax.enable_x64(True):
        sampler = make_sampler(name, CHAIN, steps=5, dtype=np.float64)
    for table in jax.tree.leaves((sampler.schedule, sampler.rows)):
        assert table.dtype == np.float64 or table.dtype.kind in "ib"
