"""From Python: the images of `sample.py`, and what cannot be in a sentence."""

import gc
import pathlib
import shutil
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax.cli import command, sample
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.generation.shards import read_shards
from ddpm_jax.randomness import base_key, image_keys, normal, row_keys

RUNS = pathlib.Path(__file__).parent / "fixtures" / "runs"
FEW = {"sampler": "ddim", "steps": 4}


@pytest.fixture(scope="module")
def model():
    return ddpm_jax.load(RUNS / "unet")


@pytest.fixture(scope="module")
def by_class():
    return ddpm_jax.load(RUNS / "dit_by_class")


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 1)).astype(np.uint8)


@pytest.fixture
def by_command(tmp_path):
    """by_command("unet", *flags): the images that sample.py writes of four."""

    def run(name, *flags):
        argv = ["--ckpt", RUNS / name, "--out", tmp_path / "out", "--num_samples", 4, *flags]
        assert command.run(sample.main, list(map(str, argv))) == 0
        images = read_shards(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
        return images

    return run


@pytest.mark.full
def test_samples_are_those_of_the_command(model, by_command):
    images = model.sample(4)
    assert (images.shape, images.dtype) == ((4, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(images, by_command("unet"))
    flags = ["--sampler", "dpmpp_2m", "--steps", 3, "--spacing", "karras", "--seed", 7]
    ours = model.sample(4, sampler="dpmpp_2m", steps=3, spacing="karras", seed=7)
    np.testing.assert_array_equal(ours, by_command("unet", *flags))


@pytest.mark.full
def test_guided_samples_are_those_of_the_command(by_class, by_command):
    flags = ["--labels", "3,5", "--guidance_scale", 3, "--guidance_interval", "0.2,0.8"]
    ours = by_class.sample(
        4, labels=[3, 5], guidance=ddpm_jax.Guidance(scale=3.0, interval=(0.2, 0.8)), **FEW
    )
    found = by_command("dit_by_class", *flags, "--sampler", "ddim", "--steps", 4)
    np.testing.assert_array_equal(ours, found)


@pytest.mark.slow
def test_pictures_are_edited_and_painted_as_by_the_command(model, by_command, photo, tmp_path):
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    places = {"photo": photo[..., 0], "mask": np.uint8(255) * mask}
    for name, pixels in places.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    path = tmp_path / "photo.png"
    edited = model.edit(photo, strength=0.5, n=4, **FEW)
    few = ["--sampler", "ddim", "--steps", 4]
    np.testing.assert_array_equal(
        edited, by_command("unet", "--init_image", path, "--strength", 0.5, *few)
    )
    np.testing.assert_array_equal(edited, model.edit(path, strength=0.5, n=4, **FEW))
    painted = model.inpaint(photo, mask, resamplings=2, jump=2, steps=6, n=4)
    flags = ["--inpaint", path, "--mask", tmp_path / "mask.png", "--resamplings", 2, "--jump", 2]
    np.testing.assert_array_equal(painted, by_command("unet", *flags, "--steps", 6))
    np.testing.assert_array_equal(painted[:, 4:], np.broadcast_to(photo[4:], (4, 4, 8, 1)))


@pytest.mark.full
def test_the_way_between_two_seeds_ends_with_their_samples(model):
    way = model.interpolate(0, 1, n=3, **FEW)
    np.testing.assert_array_equal(way[0], model.sample(1, **FEW)[0])
    np.testing.assert_array_equal(way[-1], model.sample(1, seed=1, **FEW)[0])


def test_the_way_between_two_pictures_at_little_noise_ends_near_them(model, photo):
    other = photo[::-1]
    way = model.interpolate(photo, other, n=3, t=0)
    assert way.shape == (3, 8, 8, 1)
    for end, picture in ((way[0], photo), (way[-1], other)):
        assert np.abs(end.astype(int) - picture).mean() < np.abs(photo.astype(int) - other).mean()


@pytest.mark.slow
def test_a_reconstruction_is_nearer_with_corrections(model, photo):
    rough, better = (model.reconstruct(photo, steps=4, corrections=c) for c in (0, 4))
    assert better.rmse < rough.rmse
    assert (better.image.shape, better.x_T.shape) == ((8, 8, 1), (8, 8, 1))


@pytest.mark.slow
def test_given_noise_takes_the_place_of_the_seed(model):
    made = model.sample(3, trajectory=True, **FEW)
    assert made.x_t.shape == made.x_0.shape == (5, 3, 8, 8, 1)
    np.testing.assert_array_equal(made.images, model.sample(3, **FEW))
    np.testing.assert_array_equal(model.decode(made.x_t[-1]), made.images)
    again = model.sample(3, seed=5, noise=made.x_t[0], **FEW)
    np.testing.assert_array_equal(again, made.images)


@pytest.mark.slow
def test_given_step_noise_takes_the_place_of_the_seeds(model):
    """Of an ancestral chain whose last step, at which nothing is drawn, is its last row."""
    keys = image_keys(base_key(0), jnp.arange(3))
    drawn = [normal(row_keys(keys, t), (8, 8, 1)) for t in (3, 2, 1, 0)]
    how = {"steps": 4, "noise": model.sample(3, trajectory=True, steps=4).x_t[0]}
    made = model.sample(3, seed=9, step_noise=np.stack(drawn), **how)
    np.testing.assert_array_equal(made, model.sample(3, steps=4))
    still = model.sample(3, seed=9, step_noise=np.zeros((4, 3, 8, 8, 1)), **how)
    assert np.any(made != still)
    with pytest.raises(UsageError, match=r"give \(4, 3, 8, 8, 1\)"):
        model.sample(3, step_noise=np.zeros((3, 3, 8, 8, 1)), **how)


@pytest.mark.slow
def test_a_trajectory_is_the_chain_of_the_pure_functions(by_class):
    """Held against `ddpm_jax.sample` with the denoiser of the model, in all of its moments."""
    made = by_class.sample(2, labels=[1, 8], guidance=2.0, trajectory=True, **FEW)
    sampler = ddpm_jax.make_sampler("ddim", by_class.chain, steps=4, spacing="trailing")
    denoiser = by_class.denoiser(sampler.schedule, labels=[1, 8], guidance=2.0)
    keys = image_keys(base_key(0), jnp.arange(2))
    found = ddpm_jax.sample(denoiser, sampler, made.x_t[0], keys, num_frames=5)
    np.testing.assert_allclose(found.frames_x_t, made.x_t, atol=1e-4)
    np.testing.assert_allclose(found.frames_x_0, made.x_0, atol=1e-4)


def test_pixels_are_encoded_and_decoded_exactly_and_latents_have_their_shape(model, photo):
    x_0 = model.encode(photo)
    assert x_0.shape == (8, 8, 1)
    assert np.abs(x_0).max() < 1 + 1e-6
    np.testing.assert_array_equal(model.decode(x_0), photo)
    np.testing.assert_array_equal(model.decode(model.encode(np.stack([photo] * 2)))[1], photo)
    latents = ddpm_jax.load(RUNS / "latents")
    z = latents.encode(photo)
    assert z.shape == (8, 8, 4)
    assert latents.decode(z).shape == (8, 8, 1)


def test_a_first_stage_encodes_and_decodes_and_cannot_sample(photo):
    stage = ddpm_jax.load(RUNS / "vae")
    z = stage.encode(np.stack([photo, photo]))
    assert z.shape == (2, 8, 8, 4)
    np.testing.assert_array_equal(stage.decode(z)[0], stage.decode(z[0]))
    assert not hasattr(stage, "sample")


def test_what_is_loaded_says_what_it_is(model, by_class):
    assert repr(model).startswith("<Model of ")
    assert "step 6, ema weights, images 8x8x1, T = 20>" in repr(model)
    assert (model.step, model.average, model.image_shape) == (6, "ema", (8, 8, 1))
    assert (model.chain.num_timesteps, model.config.data.name) == (20, "digits")
    assert by_class.class_names[3] == "3"


@pytest.mark.full
def test_any_function_is_a_network(by_class):
    """The exact noise of data that is one image: samples are that image, by labels if given."""
    chain = Chain(make_betas("linear", 20))
    levels = jnp.asarray(chain.at().alphas_bar)

    def network(x_t, time, label=0):
        alphas_bar = levels[time.astype(int)].reshape(-1, 1, 1, 1)
        x_0 = (0.1 * jnp.atleast_1d(label)).reshape(-1, 1, 1, 1)
        return (x_t - jnp.sqrt(alphas_bar) * x_0) / jnp.sqrt(1 - alphas_bar)

    process = make_process(chain, "eps", "fixed_small")
    model = ddpm_jax.from_network(network, process, (4, 4, 1))
    assert np.abs(model.sample(2) - 127.5).max() < 1
    model = ddpm_jax.from_network(network, process, (4, 4, 1), num_classes=9)
    images = model.sample(2, labels=[3, 5])
    assert np.abs(images[:, 0, 0, 0] - 127.5 * np.array([1.3, 1.5])).max() < 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.sample(0), "n is 0"),
        (lambda m: m.sample(1, batch_size=0), "batch_size is 0"),
        (lambda m: m.sample(1, sampler="dpm++ 2m karras"), "'dpmpp_2m' with the spacing 'karras'"),
        (lambda m: m.sample(1, steps=21), "steps is 21"),
        (lambda m: m.sample(1, guidance=2.0), "trained without labels"),
        (lambda m: m.sample(1, labels=3), "trained without labels"),
        (lambda m: m.sample(2, noise=np.zeros((1, 8, 8, 1))), r"give \(2, 8, 8, 1\)"),
        (lambda m: m.edit(np.zeros((8, 8))), "array of float64"),
        (lambda m: m.edit(np.zeros((4, 4), np.uint8)), "the array is 4x4"),
        (lambda m: m.edit("none.png", strength=2), "strength is 2"),
        (lambda m: m.edit("none.png"), "there is no file none.png"),
        (lambda m: m.edit("none.png", stpes=2), "Did you mean 'steps'"),
        (lambda m: m.reconstruct("none.png", clip="static"), "clips nothing"),
        (lambda m: m.interpolate(3, 3), "between a seed and itself"),
        (lambda m: m.decode(np.zeros(3)), "give "),
    ],
)
def test_what_cannot_be_is_a_sentence(model, call, says):
    with pytest.raises(UsageError, match=says):
        call(model)


@pytest.fixture
def compilations():
    """The programs that XLA compiles while a test runs."""
    found = []

    def note(event, *rest, **more):
        if "backend_compile" in event:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.full
def test_nothing_is_printed(model, capfd):
    model.sample(2, **FEW)
    assert capfd.readouterr() == ("", "")


CALLS = {
    "sample": lambda m, photo: m.sample(2, **FEW),
    "its chains": lambda m, photo: m.sample(2, trajectory=True, **FEW).x_0,
    "encode": lambda m, photo: m.encode(photo),
    "decode": lambda m, photo: m.decode(np.zeros(m.trained.model.shape)),
    "edit": lambda m, photo: m.edit(photo, **FEW),
    "inpaint": lambda m, photo: m.inpaint(photo, np.eye(8) > 0, **FEW),
    "interpolate seeds": lambda m, photo: m.interpolate(1, 2, n=3, **FEW),
    "interpolate": lambda m, photo: m.interpolate(photo, 255 - photo, n=3, **FEW),
    "reconstruct": lambda m, photo: m.reconstruct(photo, steps=2).image,
    "denoiser": lambda m, photo: m.denoiser()(jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, int)).x_0,
    "the bound": lambda m, photo: m.bits_per_dim(photo[None], timestep_stride=5).values,
    "by the flow": lambda m, photo: m.bits_per_dim(photo[None], "ode", rtol=1, atol=1).values,
    "evaluate": lambda m, photo: m.evaluate("fid", **OF_DIGITS)["fid"]["value"],
}
OF_DIGITS = {"num_samples": 4, "num_reference": 4, "batch_size": 4, "features": "digits", **FEW}


@pytest.mark.full
@pytest.mark.parametrize("call", CALLS)
def test_a_second_call_compiles_nothing(model, photo, compilations, call):
    first = CALLS[call](model, photo)
    before = len(compilations)
    second = CALLS[call](model, photo)
    assert len(compilations) == before
    np.testing.assert_array_equal(first, second)


@pytest.mark.full
def test_other_labels_pictures_and_scales_compile_nothing_and_matter(
    model, by_class, photo, compilations
):
    """What a program is given as arrays decides the images, not the program."""

    def guided(of, label, scale):
        chain = of.sample(2, labels=label, guidance=scale, trajectory=True, **FEW)
        return chain.x_0

    first, edited = guided(by_class, 3, 2.0), model.edit(photo, **FEW)
    before = len(compilations)
    others = [guided(by_class, 5, 2.0), guided(by_class, 3, 4.0)]
    edited = [edited, model.edit(255 - photo, **FEW)]
    assert len(compilations) == before
    fresh = ddpm_jax.load(RUNS / "dit_by_class")
    np.testing.assert_array_equal(others[0], guided(fresh, 5, 2.0))
    np.testing.assert_array_equal(others[1], guided(fresh, 3, 4.0))
    fresh = ddpm_jax.load(RUNS / "unet")
    np.testing.assert_array_equal(edited[1], fresh.edit(255 - photo, **FEW))
    assert not np.array_equal(*others)
    assert not np.array_equal(first, others[0])
    assert not np.array_equal(*edited)


@pytest.mark.full
def test_other_noise_of_a_pictures_latent_matters():
    model = ddpm_jax.load(RUNS / "latents")
    photo = np.random.default_rng(0).integers(0, 256, model.image_shape).astype(np.uint8)
    shape = model.trained.model.shape
    chains = [
        model.edit(photo, latent_noise=np.full(shape, level), trajectory=True, **FEW).x_t
        for level in (-2.0, 2.0)
    ]
    assert not np.array_equal(*chains)


def test_weights_are_freed_with_their_model():
    """No program that is kept holds them: nothing waits for the collector of cycles."""
    model = ddpm_jax.load(RUNS / "unet")
    model.sample(1, sampler="ddim", steps=1)
    leaf = weakref.ref(jax.tree.leaves(model.params)[0])
    gc.collect()
    gc.disable()
    try:
        del model
        assert leaf() is None
    finally:
        gc.enable()
