"""A denoiser: how it reaches its network, and what it refuses."""

import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.clipping import CLIPPINGS
from ddpm_jax.diffusion.denoiser import from_function
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.editing import keep_known
from ddpm_jax.samplers.guidance import autoguidance, classifier_free, classifier_guidance
from ddpm_jax.samplers.loop import begin, sample
from ddpm_jax.samplers.registry import make_sampler

PACKAGE = str(pathlib.Path(ddpm_jax.__file__).parent)
CHAIN = Chain(schedules.make_betas("linear", 50))
PROCESS = make_process(CHAIN)
SAMPLER = make_sampler("ddim", CHAIN, steps=4)
X_T = np.random.default_rng(0).standard_normal((2, 3, 3, 1), np.float32)


def network(x_t, time, condition=None):
    return 0.5 * x_t


def functions_on_the_way(wrap):
    """The names of the package's functions between the walk of a row and the network."""
    seen = []

    def spy(x_t, time, condition=None):
        frames = [f.function for f in inspect.stack() if f.filename.startswith(PACKAGE)]
        seen.append(frames[: frames.index("_walk_row")][::-1])
        return network(x_t, time)

    denoiser = wrap(PROCESS.denoiser(spy, SAMPLER.schedule, clip="none"))
    jax.eval_shape(lambda x: sample(denoiser, SAMPLER, x).x_0, X_T)
    return seen


@pytest.mark.parametrize("clip", CLIPPINGS)
def test_a_step_reaches_the_network_through_the_denoiser_alone(clip):
    """Clipping, guidance by another model and known pixels come after the network, not around."""
    mask = np.ones((2, 3, 3, 1), bool)
    for wrap in (
        CLIPPINGS[clip],
        lambda d: keep_known(CLIPPINGS[clip](d), X_T, mask),
        lambda d: autoguidance(d, from_function(d.schedule, one), scale=2.0),
    ):
        assert functions_on_the_way(wrap) == [["step", "__call__"]]


def test_classifier_free_guidance_adds_one_function_which_doubles_the_batch():
    labels = np.zeros(2, int)

    def wrap(denoiser):
        return CLIPPINGS["static"](classifier_free(denoiser, labels, labels, scale=2.0))

    assert functions_on_the_way(wrap) == [["step", "__call__", "network"]]


def one(x_t, t):
    return Prediction(x_t, x_t, x_t, x_t)


OTHER = CHAIN.at(np.array([0, 10, 20, 48]))


@pytest.mark.parametrize(
    "schedule",
    [OTHER, CHAIN.at(), CHAIN.at(OTHER.timesteps, dtype=np.float64)],
    ids=["other times", "more steps", "another dtype"],
)
def test_a_denoiser_on_another_schedule_than_the_samplers_is_refused(schedule):
    denoiser = PROCESS.denoiser(network, schedule, clip="static")
    with pytest.raises(UsageError, match=r"another schedule \(.*\) than the sampler \(4 rows"):
        sample(denoiser, SAMPLER, X_T)


def test_equal_tables_are_one_schedule_and_traced_ones_must_be_the_same():
    again = CHAIN.at(SAMPLER.schedule.timesteps.astype(int))
    assert again is not SAMPLER.schedule
    sample(PROCESS.denoiser(network, again, clip="static"), SAMPLER, X_T)

    def run(of_denoiser, of_sampler):
        denoiser = PROCESS.denoiser(network, of_denoiser, clip="static")
        return sample(denoiser, SAMPLER._replace(schedule=of_sampler), X_T).x_0

    jax.eval_shape(lambda schedule: run(schedule, schedule), again)
    with pytest.raises(UsageError, match="one and the same argument"):
        jax.eval_shape(run, again, again)


@pytest.mark.parametrize(
    "use",
    [
        lambda d: sample(d, SAMPLER, X_T),
        CLIPPINGS["static"],
        CLIPPINGS["none"],
        lambda d: keep_known(d, X_T, X_T > 0),
        lambda d: classifier_free(d, 0, 0, scale=1.0),
        lambda d: classifier_guidance(d, None, None, scale=1.0),
        lambda d: autoguidance(d, d, scale=1.0),
    ],
)
def test_a_bare_function_is_refused_with_the_way_to_a_denoiser(use):
    with pytest.raises(
        UsageError, match=r"not a function: make one .*\.denoiser\(network, .*from_f"
    ):
        use(one)


def test_two_models_on_different_schedules_are_not_combined():
    here, there = (PROCESS.denoiser(network, s, clip="none") for s in (SAMPLER.schedule, OTHER))
    with pytest.raises(UsageError, match=r"another schedule .* than the model that it guides"):
        autoguidance(here, there, scale=2.0)


def test_a_function_with_a_condition_is_a_denoiser_too():
    def predict(x_t, t, condition):
        return Prediction(*(jnp.full_like(x_t, condition),) * 4)

    denoiser = from_function(SAMPLER.schedule, predict)
    assert np.all(denoiser.given(3.0)(X_T, np.zeros(2, int)).x_0 == 3)


def make_keys(count):
    return jax.random.split(jax.random.key(0), count)


NOISY = make_sampler("ancestral", CHAIN, steps=4)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda run: run(X_T, jax.random.key(0)),
            r"keys has shape \(\), but each of the 2 images",
        ),
        (lambda run: run(X_T, jax.random.PRNGKey(0)), r"keys has shape \(\), but each of the 2"),
        (lambda run: run(X_T, make_keys(3)), r"keys has shape \(3,\), but each of the 2 images"),
        (lambda run: run(X_T, 0), "each of the 2 images needs a key of its own: image_keys"),
        (
            lambda run: run(X_T, step_noise=np.zeros((3, *X_T.shape))),
            r"step_noise has shape \(3, 2, 3, 3, 1\): this chain of 4 rows needs \(4, 2, 3, 3, 1\)",
        ),
        (lambda run: run(X_T.astype(int), make_keys(2)), "x_T is int32, but the sampler's tables"),
        (lambda run: run(np.float16(X_T), make_keys(2)), "x_T is float16, but .* are float32"),
        (lambda run: run(X_T[0, 0, 0], make_keys(3)), r"x_T has shape \(1,\): its first axis"),
        (lambda run: run(X_T, make_keys(2), trajectory=True, num_frames=3), "leave num_frames out"),
    ],
)
def test_arrays_that_do_not_fit_are_named(call, sentence):
    denoiser = PROCESS.denoiser(network, NOISY.schedule, clip="static")
    with pytest.raises(UsageError, match=sentence):
        call(lambda *args, **options: sample(denoiser, NOISY, *args, **options))


def test_keys_of_the_older_kind_are_taken():
    denoiser = PROCESS.denoiser(network, NOISY.schedule, clip="static")
    sample(denoiser, NOISY, X_T, jax.vmap(jax.random.PRNGKey)(jnp.arange(2)))


def test_float64_without_it_in_jax_is_refused_instead_of_rounded():
    with pytest.raises(UsageError, match=r"table is to be float64, but JAX .*JAX_ENABLE_X64=1"):
        make_sampler("ddim", CHAIN, steps=4, dtype=np.float64)
    with jax.enable_x64(True):
        sampler = make_sampler("ddim", CHAIN, steps=4, dtype=np.float64)
    with pytest.raises(UsageError, match="float64, but JAX computes in float32"):
        begin(sampler, X_T)
    with jax.enable_x64(True), pytest.raises(UsageError, match=r"x_T is float32, but .* float64"):
        begin(sampler, X_T)


def test_times_have_the_digits_of_the_tables():
    third = Chain(CHAIN.betas, time_scale=1 / 3)
    np.testing.assert_array_equal(third.at(dtype=np.float64).timesteps, np.arange(50) * (1 / 3))
    assert third.at().timesteps.dtype == third.at(dtype=np.float16).timesteps.dtype == np.float32


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Chain("linear"), r"not of a name: Chain\(make_betas\('linear', 1000\)\)"),
        (lambda: Chain(CHAIN.at()), "betas must be a list of at least two numbers"),
        (lambda: Chain([0.1, 1.5]), "betas must lie in"),
        (
            lambda: make_process(CHAIN.at()),
            "A Chain is needed, .* not a Schedule: make one by Chain",
        ),
        (lambda: make_sampler("ddim", CHAIN.at(), steps=4), "A Chain is needed"),
    ],
)
def test_what_is_no_chain_is_refused(build, sentence):
    with pytest.raises(UsageError, match=sentence):
        build()
