"""Images from a model: the same on one device and eight and in any batch."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data.transforms import to_uint8
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas, make_schedule
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.generation import dispatch, generating
from ddpm_jax.generation.generating import generate_batches, make_generate
from ddpm_jax.randomness import image_keys, initial_noise
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.loop import sample

ROOT = pathlib.Path(__file__).parents[2]
SHAPE = (4, 4, 1)
STEPS = 20
KERNEL = 0.3 * np.random.default_rng(0).standard_normal((3, 3, 1, 1), np.float32)
KEY = jax.random.key(3)


def chain(traces=None):
    """(make_denoiser, sampler) of a convolution whose kernel is the parameters."""
    schedule = make_schedule(make_betas("linear", STEPS))

    def make_denoiser(params, schedule, inputs):
        def network(x_t, time):
            if traces is not None:
                traces.append(x_t.shape[0])
            h = jax.lax.conv_general_dilated(
                x_t, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return jnp.tanh(h + 0.05 * time[:, None, None, None])

        return make_process(Chain(make_betas("linear", STEPS)), "eps", "fixed_large").denoiser(
            network, schedule, clip="static"
        )

    return make_denoiser, ancestral(schedule)


@pytest.fixture(scope="module")
def generate():
    return make_generate(*chain(), SHAPE)


def assert_same_images(actual, expected):
    """Assert equality up to the rounding of a sum in another order, 1e-6.

    That moves a grey level only at a rounding edge.
    """
    difference = np.abs(actual.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 1e-2


@pytest.mark.full
def test_generate_is_the_sampler_on_the_keys_of_the_images(generate):
    make_denoiser, sampler = chain()
    keys = image_keys(KEY, jnp.array([4, 0, 9]))
    x_0 = sample(
        make_denoiser(KERNEL, sampler.schedule, None), sampler, initial_noise(keys, SHAPE), keys
    ).x_0
    assert_same_images(generate(KERNEL, KEY, [4, 0, 9]).images, np.asarray(to_uint8(x_0)))


@pytest.mark.slow
def test_an_image_is_the_same_in_any_batch(generate):
    together = generate(KERNEL, KEY, range(10)).images
    assert together.dtype == np.uint8
    assert together.shape == (10, *SHAPE)
    assert_same_images(generate(KERNEL, KEY, [7, 2], batch_size=5).images, together[[7, 2]])
    for batch_size in (1, 4, 10, 16):
        batches = list(
            generate_batches(generate, KERNEL, seed=3, indices=range(10), batch_size=batch_size)
        )
        assert [len(index) for index, _ in batches] == np.diff(
            [*range(0, 10, batch_size), 10]
        ).tolist()
        np.testing.assert_array_equal(np.concatenate([index for index, _ in batches]), range(10))
        assert_same_images(np.concatenate([made.images for _, made in batches]), together)


def test_a_short_last_batch_compiles_nothing_new():
    traces = []
    generate = make_generate(*chain(traces), SHAPE)
    for _ in generate_batches(generate, KERNEL, seed=0, indices=range(10), batch_size=4):
        pass
    assert traces == [4]


def test_new_parameters_compile_nothing_new():
    traces = []
    generate = make_generate(*chain(traces), SHAPE)
    first, second = (generate(scale * KERNEL, KEY, range(4)).images for scale in (1, 2))
    assert np.any(first != second)
    assert traces == [4]


@pytest.mark.full
def test_inputs_and_start_reach_the_image_they_belong_to():
    """A chain that starts at its input; the network predicts the other inputs as x_0."""
    process = make_process(Chain(make_betas("linear", STEPS)), "x_0", "fixed_small")
    sampler = ancestral(process.chain.at())
    signal = sampler.schedule.sqrt_alphas_bar[0]

    def make_denoiser(params, schedule, inputs):
        def network(x_t, time):
            return inputs["label"][:, None, None, None] / 10 + inputs["shift"]

        return process.denoiser(network, schedule, clip="none")

    generate = make_generate(
        make_denoiser,
        sampler,
        SHAPE,
        start=lambda keys, inputs: inputs["start"] * signal,
        num_frames=2,
    )
    rng = np.random.default_rng(0)
    inputs = {
        "label": np.arange(7),
        "start": rng.uniform(-1, 1, (7, *SHAPE)).astype(np.float32),
        "shift": rng.uniform(-0.3, 0.3, (7, *SHAPE)).astype(np.float32),
    }
    made = generate(None, KEY, range(7), inputs=inputs, batch_size=10)
    expected = np.arange(7).reshape(7, 1, 1, 1) / 10 + inputs["shift"]
    assert_same_images(made.images, np.asarray(to_uint8(expected)))
    assert_same_images(made.frames_x_t[0], np.asarray(to_uint8(signal * inputs["start"])))
    batches = generate_batches(
        generate,
        None,
        seed=3,
        indices=[5, 1, 6],
        batch_size=2,
        make_inputs=lambda index: {name: leaf[index] for name, leaf in inputs.items()},
    )
    np.testing.assert_array_equal(
        np.concatenate([part.images for _, part in batches]), made.images[[5, 1, 6]]
    )


@pytest.mark.full
def test_frames_come_noise_first_and_end_with_the_images(generate):
    generated = make_generate(*chain(), SHAPE, num_frames=5)(KERNEL, KEY, range(3))
    assert generated.frames_x_t.shape == generated.frames_x_0.shape == (5, 3, *SHAPE)
    noise = initial_noise(image_keys(KEY, jnp.arange(3)), SHAPE)
    np.testing.assert_array_equal(generated.frames_x_t[0], to_uint8(noise))
    np.testing.assert_array_equal(generated.frames_x_t[-1], generated.images)
    np.testing.assert_array_equal(generated.frames_x_0[-1], generated.images)
    assert_same_images(generated.images, generate(KERNEL, KEY, range(3)).images)


class Stop(Exception):
    """The exception that a watch raises."""


def test_the_watch_sees_every_dispatch_and_what_it_raises_ends_the_chain_alone():
    inputs = np.random.default_rng(1).standard_normal((3, *SHAPE)).astype(np.float32)
    # The start returns its input unchanged: a donated buffer must not be the input's own.
    generate = make_generate(*chain(), SHAPE, start=lambda keys, inputs: inputs)
    whole = generate(KERNEL, KEY, range(3), inputs=inputs).images
    seen = []

    def watch(done, total):
        seen.append((done, total))
        if done > 2:
            raise Stop

    with pytest.raises(Stop):
        generate(KERNEL, KEY, range(3), inputs=inputs, watch=watch)
    assert [total for _, total in seen] == [STEPS] * len(seen)
    assert seen[-1][0] > 2
    np.testing.assert_array_equal(generate(KERNEL, KEY, range(3), inputs=inputs).images, whole)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, STEPS])
def test_images_are_the_same_bit_for_bit_however_long_a_dispatch_is(generate, monkeypatch, rows):
    monkeypatch.setattr(
        dispatch.Pace, "learn", lambda self, done, seconds: setattr(self, "rows", rows)
    )
    framed = make_generate(*chain(), SHAPE, num_frames=5)
    np.testing.assert_array_equal(
        framed(KERNEL, KEY, range(3)).frames_x_t, once(num_frames=5).frames_x_t
    )
    np.testing.assert_array_equal(generate(KERNEL, KEY, range(3)).images, once().images)


def once(num_frames=0):
    """Three images by the scan of the whole chain."""
    make_denoiser, sampler = chain()
    keys = image_keys(KEY, jnp.arange(3))

    def whole(schedule, rows):
        denoiser = make_denoiser(KERNEL, schedule, None)
        on = sampler._replace(schedule=schedule, rows=rows)
        return sample(denoiser, on, initial_noise(keys, SHAPE), keys, num_frames=num_frames)

    samples = jax.jit(whole)(sampler.schedule, sampler.rows)
    return generating.Generated(*(None if x is None else np.asarray(to_uint8(x)) for x in samples))


def test_bad_requests_are_refused(generate):
    with pytest.raises(UsageError, match="0 images are asked for"):
        generate(KERNEL, KEY, [])
    with pytest.raises(UsageError, match="5 images are asked for in a batch of 4"):
        generate(KERNEL, KEY, range(5), batch_size=4)
    with pytest.raises(UsageError, match="batch size is 0"):
        next(generate_batches(generate, KERNEL, seed=0, indices=range(5), batch_size=0))


@pytest.mark.full
def test_images_that_are_not_finite_are_a_failure_that_names_the_first():
    make_denoiser, sampler = chain()

    def diverging(params, schedule, inputs):
        def spoil(schedule, prediction, x_t, t):
            bad = jnp.arange(x_t.shape[0])[:, None, None, None] >= params
            return prediction._replace(mean=jnp.where(bad, jnp.nan, prediction.mean))

        return make_denoiser(KERNEL, schedule, inputs).then(spoil)

    generate = make_generate(diverging, sampler, SHAPE)
    with pytest.raises(FailureError, match="Image 12 came out as not-a-number"):
        generate(2, KEY, range(10, 15))
    # The padding repeats an image and cannot fail on its own; here only the padding is bad.
    assert generate(5, KEY, range(10, 15), batch_size=8).images.shape == (5, *SHAPE)


PROGRAM = """
import importlib.util, pathlib, sys, time
import jax, numpy as np
spec = importlib.util.spec_from_file_location("test_generation", {file!r})
this = importlib.util.module_from_spec(spec)
spec.loader.exec_module(this)
"""


def program(body):
    """A Python program that has this file as `this`, in a process of its own."""
    return [sys.executable, "-c", PROGRAM.format(file=__file__) + body]


def run_environment(devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


@pytest.mark.full
def test_eight_devices_make_the_images_of_one(tmp_path, generate):
    body = f"""
assert jax.local_device_count() == 8
rows = []
generate = this.make_generate(*this.chain(), this.SHAPE, num_frames=3)
watch = lambda done, total: rows.append(done)
generated = generate(this.KERNEL, this.KEY, range(13), batch_size=13, watch=watch)
assert rows[-1] == this.STEPS and rows == sorted(set(rows)), rows
np.savez({str(tmp_path / "eight.npz")!r}, **generated._asdict())
"""
    subprocess.run(program(body), env=run_environment(devices=8), check=True)
    one = make_generate(*chain(), SHAPE, num_frames=3)(KERNEL, KEY, range(13))
    with np.load(tmp_path / "eight.npz") as eight:
        for name, expected in one._asdict().items():
            assert eight[name].shape == expected.shape
            assert_same_images(eight[name], expected)
