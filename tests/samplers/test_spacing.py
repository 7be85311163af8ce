"""The levels that every spacing visits; test_diffusers_schedulers.py compares with diffusers."""

import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain, continuous_chain
from ddpm_jax.diffusion.interpolants import INTERPOLANTS
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.linear import levels_from_schedule
from ddpm_jax.samplers.spacing import SPACINGS, sections, space

CHAIN = Chain(make_betas("linear", 1000))
INTEGER = ("linspace", "leading", "trailing", "quadratic")


def sigmas(times):
    return levels_from_schedule(CHAIN.at(times, dtype=np.float64)).sigma[-2::-1]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 333, 999, 1000])
def test_every_spacing_keeps_n_different_times_of_the_chain(spacing, steps):
    times = space(CHAIN, spacing, steps)
    assert len(times) == steps
    assert np.all(np.diff(times) > 0)
    assert times[0] >= 0
    assert times[-1] <= 999
    assert np.issubdtype(times.dtype, np.integer) == (spacing in INTEGER)
    if spacing != "leading":
        assert times[-1] == 999  # x_T is the noise of t = T-1
    assert CHAIN.at(times).num_timesteps == steps


@pytest.mark.parametrize("spacing", INTEGER)
def test_all_steps_are_the_trained_chain(spacing):
    np.testing.assert_array_equal(space(CHAIN, spacing, 1000), np.arange(1000))


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear"])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_any_schedule_may_be_spaced_in_sigma_up_to_t_steps(name, spacing):
    chain = Chain(make_betas(name, 100))
    for steps in (2, 30, 100):
        assert chain.at(space(chain, spacing, steps)).num_timesteps == steps


def test_what_they_keep():
    assert space(CHAIN, "linspace", 4).tolist() == [0, 333, 666, 999]
    assert space(CHAIN, "leading", 4).tolist() == [0, 250, 500, 750]
    assert space(CHAIN, "trailing", 4).tolist() == [249, 499, 749, 999]
    assert space(CHAIN, "quadratic", 4).tolist() == [0, 111, 444, 999]
    # 0, 0, 0, 0 before they move up
    assert space(CHAIN, "quadratic", 100)[:4].tolist() == [0, 1, 2, 3]


def test_karras_is_linear_in_the_seventh_root_of_sigma():
    roots = sigmas(space(CHAIN, "karras", 12)) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 11, rtol=1e-9)


@pytest.mark.parametrize("spacing", ["exponential", "logsnr"])
def test_exponential_is_linear_in_the_log_snr(spacing):
    alphas_bar = CHAIN.at(space(CHAIN, spacing, 12), dtype=np.float64).alphas_bar
    steps = np.diff(np.log(alphas_bar / (1 - alphas_bar)))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-9)


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_both_ends_of_the_chain_are_met_to_the_last_digit(spacing):
    assert space(CHAIN, spacing, 12)[[0, -1]].tolist() == [0, 999]


@pytest.mark.parametrize("steps", [2, 7, 100, 255])
def test_in_a_range_of_sigma_linspace_is_the_iddpm_of_edms_ablation(steps):
    """Karras et al. 2022, table 1: of the levels u with σ_min <= u <= σ_max every k-th, rounded."""
    chain = Chain(make_betas("cosine", 1000))
    u = np.exp(chain.log_sigmas)[::-1]
    u = u[(u >= 0.002) & (u <= 81)]
    expected = u[np.round((len(u) - 1) / (steps - 1) * np.arange(steps)).astype(int)]
    times = space(chain, "linspace:0.002,81", steps)
    assert np.issubdtype(times.dtype, np.integer)
    np.testing.assert_array_equal(np.exp(chain.log_sigmas)[times][::-1], expected)


@pytest.mark.parametrize("spacing", ["karras", "exponential", "linspace"])
@pytest.mark.parametrize("name", ["edm", "flow", "chain"])
def test_a_range_of_sigma_is_that_of_the_levels(spacing, name):
    """To the last digits but where levels are whole steps; it may lie below an infinite end."""
    chain = CHAIN if name == "chain" else continuous_chain(INTERPOLANTS[name], 500)
    found = chain.at(space(chain, f"{spacing}:0.5,7", 5), dtype=np.float64).sigma
    whole_steps = (name, spacing) == ("chain", "linspace")
    np.testing.assert_allclose(found[[0, -1]], [0.5, 7], rtol=2e-2 if whole_steps else 1e-9)
    beyond = space(CHAIN, f"{spacing}:0,1e9", 5)
    np.testing.assert_allclose(beyond, space(CHAIN, spacing, 5), atol=1)  # rounded from the end
    assert len(space(chain, f"{spacing}:0.5,7", 1)) == 1


def test_a_list_of_times_is_taken_in_either_order():
    assert space(CHAIN, [3, 500, 20.5], 3).tolist() == [3, 20.5, 500]
    assert space(CHAIN, [999, 0], 2).tolist() == [0, 999]
    assert np.issubdtype(space(CHAIN, [999, 0], 2).dtype, np.integer)


@pytest.mark.parametrize(
    ("spacing", "steps", "message"),
    [
        ("karas", 10, "Unknown spacing 'karas': choose one of .*Did you mean 'karras'"),
        ("linspace", 0, "steps is 0: the chain has 1000 timesteps, so choose 1 to 1000"),
        ("leading", -3, "steps is -3"),
        ("karras", 1001, "steps is 1001"),
        ([1, 2, 3], 4, "steps is 4, but the list of timesteps has 3"),
        ([1, 2, 2], 3, "must differ and lie in 0..999"),
        ([1, 1000], 2, "must differ and lie in 0..999"),
        ([-1, 5], 2, "must differ and lie in 0..999"),
        ([], 0, "list of timesteps is empty"),
        ([float("nan"), 3], 2, "must differ and lie in 0..999"),
        ([[1, 2]], 2, "list of timesteps"),
    ],
)
def test_what_cannot_be_is_refused(spacing, steps, message):
    with pytest.raises(UsageError, match=message):
        space(CHAIN, spacing, steps)


@pytest.mark.parametrize("spacing", ["karras", "exponential", "logsnr"])
def test_a_chain_that_destroys_the_signal_has_no_end_to_space_by(spacing):
    with pytest.raises(
        UsageError, match=r"ends at alphas_bar = 0.*linspace, trailing or quadratic"
    ):
        space(Chain(make_betas("jsd", 50)), spacing, 10)


@pytest.mark.parametrize(
    ("num_timesteps", "counts", "expected"),
    [  # by hand from the rule of OpenAI's `timestep_respacing`
        (10, [2, 3], [0, 4, 5, 7, 9]),
        (11, [3, 2], [0, 2, 5, 6, 10]),  # parts of 6 and 5; 2.5 is rounded to even
        (12, [1, 0, 4], [0, 8, 9, 10, 11]),  # a single one is the first of its part
        (9, [9], list(range(9))),
    ],
)
def test_sections_are_those_of_openais_code(num_timesteps, counts, expected):
    chain = Chain(make_betas("linear", num_timesteps))
    assert sections(chain, counts).tolist() == expected
    assert space(chain, f"sections:{','.join(map(str, counts))}").tolist() == expected


@pytest.mark.parametrize(
    ("spacing", "steps", "sentence"),
    [
        ("sections:600,10", None, "A section of 600 steps: 2 parts of 1000 timesteps have 500"),
        ("sections:-1,10", None, "A section of -1 steps"),
        ("sections:0,0", None, "sections have no step at all"),
        ("sections:ten", None, "has no list of counts: give them as in sections:10,10,20"),
        ("sections:10,10", 30, "steps is 30, but the sections have 20: leave out the one"),
        ("karras:0.1", 5, "has no range of sigma: give the least and the most"),
        ("karras:3,1", 5, "has no range of sigma"),
        ("trailing:0.1,3", 5, "trailing is of all T timesteps and takes no range"),
        ("karras:1e4,2e4", 5, "10000 to 20000 has nothing of the chain's"),
        (
            "linspace:0.1,0.11",
            50,
            r"has \d+ timesteps with sigma in 0.1 to 0.11, so choose at most",
        ),
        ("linear:0.1,3", 5, "Unknown spacing 'linear:0.1,3'"),
        ("10,10,10", None, r"Unknown spacing '10,10,10': .*counts after 'sections:'"),
        ([3, 2, 1], 5, "steps is 5, but the list of timesteps has 3: leave out the one"),
    ],
)
def test_sections_and_lists_that_cannot_be_are_refused(spacing, steps, sentence):
    with pytest.raises(UsageError, match=sentence):
        space(CHAIN, spacing, steps)
