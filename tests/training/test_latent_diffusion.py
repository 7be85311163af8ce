"""Training over latents: what the model is given, what stays frozen, and latents that were encoded
once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.data.captions import make_captions
from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.data.pipeline import train_iterator
from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.losses import LOSSES
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.distributed.pmap import in_parts, map_step, shard
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.training import latent_cache
from ddpm_jax.training.latent_objective import ENCODED, over_latents
from ddpm_jax.training.objective import GIVEN, Drawing, diffusion_objective
from ddpm_jax.training.state import create
from ddpm_jax.training.step import StepOptions, make_train_step
from ddpm_jax.variational.first_stage import FirstStage
from ddpm_jax.variational.latent_space import Frozen, LatentSpace
from ddpm_jax.variational.observation import FAMILIES

N, SIDE, SCALE = 40, 4, 1.7
IMAGES = np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 1), np.uint8)
SOURCE = ArraySource(IMAGES, np.arange(N, dtype=np.int32) % 3, 3, "forty")
CHAIN = Chain(make_betas("linear", 20))
INDEX = jnp.arange(8)


def _patches(params, x, keys):
    """2x2 patches as channels, weighted: an encoder that a mirror image tells from the image."""
    b, h, w, c = x.shape
    patches = (
        x.reshape(b, h // 2, 2, w // 2, 2, c)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(b, h // 2, w // 2, 4 * c)
    )
    return params["weight"].reshape(1, 1, 1, -1) * patches


def _moments(params, x, keys):
    return jnp.concatenate([_patches(params, x, keys), jnp.full((len(x), 2, 2, 4), -2.0)], axis=-1)


def make_space(kind):
    encode = _moments if kind == "vae" else _patches
    return LatentSpace(
        FirstStage(kind, encode, lambda params, z, keys: z, FAMILIES["gaussian"]), (2, 2, 4)
    )


FROZEN = Frozen({"weight": jnp.array([1.0, 0.5, 2.0, 0.25])}, jnp.float32(SCALE))
PARAMS = {"gain": jnp.array([0.1, 0.2, 0.3, 0.4])}


def diffusion(**options):
    return diffusion_objective(
        lambda params, x_t, time, condition, keys: x_t * params["gain"].reshape(1, 1, 1, -1),
        make_process(CHAIN),
        LOSSES["simple"],
        Drawing(**{"flip": False} | options),
        timestep_sampling="uniform",
    )


def test_the_loss_is_that_of_diffusion_over_the_scaled_latents():
    key, batch = jax.random.key(3), {"image": IMAGES[:8]}
    objective = over_latents(diffusion(), make_space("ae"), flip=False)
    loss, _ = objective.loss(PARAMS, FROZEN, (), batch, key, INDEX)
    z = SCALE * _patches(FROZEN.params, to_model_range(IMAGES[:8]), None)
    wanted, _ = diffusion().loss(PARAMS, (), (), {GIVEN: z}, key, INDEX)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("flip", [False, True])
def test_latents_that_were_kept_give_the_loss_of_those_encoded_on_the_fly(flip):
    x, space = to_model_range(IMAGES[:8]), make_space("vae")
    versions = (x, x[:, :, ::-1]) if flip else (x,)
    kept = {ENCODED: jnp.stack([space.encoded(FROZEN.params, v) for v in versions], axis=1)}
    objective = over_latents(diffusion(), space, flip=flip)
    losses = [
        objective.loss(PARAMS, FROZEN, (), batch, jax.random.key(seed), INDEX)[0]
        for seed in (0, 1)
        for batch in ({"image": IMAGES[:8]}, kept)
    ]
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[2], losses[3])
    assert not np.array_equal(losses[0], losses[2])  # z is drawn again in every step


@pytest.mark.full
def test_mirror_images_are_encoded_and_not_latents_mirrored():
    """About half of 40 images must have the latents of their mirror image, which are not their
    latents mirrored."""
    seen = {}

    def spy(params, x_t, time, condition, keys):
        seen["x_t"] = x_t
        return x_t * params["gain"].reshape(1, 1, 1, -1)

    quiet = make_process(Chain(np.full(20, 1e-9)))
    inner = diffusion_objective(
        spy, quiet, LOSSES["simple"], Drawing(flip=False), timestep_sampling="uniform"
    )
    objective = over_latents(inner, make_space("ae"), flip=True)
    objective.loss(PARAMS, FROZEN, (), {"image": IMAGES}, jax.random.key(0), jnp.arange(N))
    x = to_model_range(IMAGES)
    plain, mirrored = (SCALE * _patches(FROZEN.params, v, None) for v in (x, x[:, :, ::-1]))
    near = [np.abs(seen["x_t"] - z).max(axis=(1, 2, 3)) < 1e-2 for z in (plain, mirrored)]
    assert np.all(near[0] ^ near[1])
    assert 10 <= near[1].sum() <= 30  # of 40 fair coins, all but 1 of 500 times


@pytest.mark.full
def test_a_step_leaves_the_first_stage_as_it_is_and_trains_the_rest():
    objective = over_latents(diffusion(), make_space("vae"), flip=False)
    optimizer = optax.sgd(0.1)
    params, frozen = jax.tree.map(jnp.array, (PARAMS, FROZEN))  # the step donates them
    state = create(params, optimizer, objective, frozen=frozen)
    step = map_step(
        make_train_step(objective, optimizer, optax.constant_schedule(0.1), StepOptions())
    )
    for _ in range(2):
        state, _ = step(state, shard({"image": IMAGES[:8]}), jax.random.key(0))
    kept = state.frozen
    np.testing.assert_array_equal(kept.params["weight"], FROZEN.params["weight"])
    assert float(kept.scale) == np.float32(SCALE)
    assert not np.allclose(state.params["gain"], PARAMS["gain"])


def test_the_measured_scale_is_one_over_the_standard_deviation_of_the_latents():
    scale = latent_cache.measure_scale(
        make_space("ae"), FROZEN.params, SOURCE, key=jax.random.key(0), num_images=1000
    )
    z = np.asarray(_patches(FROZEN.params, to_model_range(IMAGES), None), np.float64)
    assert scale == pytest.approx(1 / z.std(), rel=1e-5)


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(latent_cache, "SHARD", 16)


def cached(directory, **changes):
    fields = {"flip": True, "sha256": "abc"} | changes
    return latent_cache.cached(directory, make_space("vae"), FROZEN.params, SOURCE, **fields)


def test_kept_latents_come_in_the_order_of_the_images_with_their_labels(tmp_path, small_files):
    kept = cached(tmp_path / "latents")
    assert len(list((tmp_path / "latents").glob("latents-*-of-00003.npy"))) == 3  # 16, 16 and 8
    ours, theirs = (train_iterator(source, batch_size=12, seed=5) for source in (kept, SOURCE))
    for _ in range(5):  # past the end of an epoch
        latents, images = next(ours), next(theirs)
        x = to_model_range(images["image"])
        wanted = np.stack([_moments(FROZEN.params, v, None) for v in (x, x[:, :, ::-1])], axis=1)
        np.testing.assert_allclose(latents[ENCODED], wanted, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(latents["label"], images["label"])
    assert ours.get_state() == theirs.get_state()
    ours.close(), theirs.close()


def test_kept_latents_have_the_captions_of_their_images(tmp_path, small_files):
    """The same as the images', drawn alike; other captions need no other latents."""
    texts = [[f"{i} {j}" for j in range(1 + i % 3)] for i in range(N)]
    source = dataclasses.replace(
        SOURCE, captions=make_captions(texts), fingerprint="forty captions=1"
    )
    space = make_space("vae")

    def keep(source):
        return latent_cache.cached(
            tmp_path / "latents", space, FROZEN.params, source, flip=False, sha256="abc"
        )

    options = {"batch_size": 12, "seed": 5, "caption_dropout": 0.3}
    ours, theirs = (train_iterator(one, **options) for one in (keep(source), source))
    for _ in range(5):
        np.testing.assert_array_equal(next(ours)["caption"], next(theirs)["caption"])
    assert ours.get_state() == theirs.get_state()
    ours.close(), theirs.close()
    assert keep(dataclasses.replace(source, fingerprint="forty captions=2")).captions is not None
    assert keep(SOURCE).captions is None


def test_latents_are_not_kept_of_an_image_that_stands_for_another(tmp_path, small_files):
    class Damaged(ArraySource):
        def gather_rows(self, indices):
            return self.gather(indices), np.where(indices == 7, 8, indices)

    source = Damaged(IMAGES, SOURCE.labels, 3, "forty", captions=make_captions([["a"]] * N))
    with pytest.raises(UsageError, match=r"captioned images 1 cannot be read, .* 7: remove"):
        latent_cache.cached(
            tmp_path / "x", make_space("vae"), FROZEN.params, source, flip=False, sha256=""
        )


@pytest.mark.full
def test_encoding_goes_on_where_it_stopped_and_a_damaged_file_is_named(tmp_path, small_files):
    directory = tmp_path / "latents"
    first = cached(directory).gather(np.arange(N))
    files = sorted(directory.glob("*.npy"))
    files[1].unlink()
    untouched = files[0].stat().st_mtime_ns
    np.testing.assert_array_equal(cached(directory).gather(np.arange(N))[ENCODED], first[ENCODED])
    assert files[0].stat().st_mtime_ns == untouched
    files[2].write_bytes(files[2].read_bytes()[:40])
    with pytest.raises(FailureError, match=r"latents-00002-of-00003.npy is damaged .*: delete it"):
        cached(directory)
    for text in ("[]", "{", "[" * 100_000):
        (directory / "latents.json").write_text(text)
        with pytest.raises(FailureError, match=r"latents.json is damaged \(it .*: delete"):
            cached(directory)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sha256": "xyz"}, "first_stage_sha256 is 'abc' there, 'xyz' here"),
        ({"flip": False}, "flip"),
    ],
)
def test_latents_of_something_else_are_refused(tmp_path, small_files, changes, says):
    cached(tmp_path / "latents")
    with pytest.raises(UsageError, match=f"holds other latents .*{says}.*name another directory"):
        cached(tmp_path / "latents", **changes)


@pytest.mark.full
@pytest.mark.parametrize("count", [1, 8, 9, 20])
def test_parts_give_what_the_whole_gives(count):
    x = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    np.testing.assert_array_equal(in_parts(lambda part: 2 * part, x, size=8), 2 * x)
