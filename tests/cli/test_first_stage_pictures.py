"""Pictures of a first stage whose network is chosen so that every cell of them is known."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax.data import sources
from ddpm_jax.experiments import config as configs
from ddpm_jax.measuring import first_stage_pictures
from ddpm_jax.plotting.grids import grid
from ddpm_jax.variational.first_stage import FirstStage
from ddpm_jax.variational.observation import FAMILIES

pytestmark = pytest.mark.full


def halves(params, x, keys):
    """[B, 1, 1, 2]: the mean of an image's left and of its right half."""
    return jnp.mean(x.reshape(len(x), 8, 2, 4, 1), axis=(1, 3)).reshape(len(x), 1, 1, 2)


def with_variance(params, x, keys):
    return jnp.concatenate([halves(params, x, keys), jnp.full((len(x), 1, 1, 2), -4.0)], axis=-1)


def painted(params, z, keys):
    """Each half of an image in one grey."""
    return jnp.repeat(jnp.tile(z.reshape(len(z), 1, 2, 1), (1, 8, 1, 1)), 4, axis=2)


CODEBOOK = np.float32([[-1, -1], [-0.5, -0.5], [0, 0], [1, 1]])


@pytest.fixture
def draw(data_dir):
    """draw(kind) -> what is drawn of the first ten held-out digits, and these."""

    def of(kind):
        config = configs.default_config()
        config.data.name, config.data.data_dir, config.data.image_size, config.data.channels = (
            "digits",
            data_dir,
            8,
            1,
        )
        config.first_stage.kind, config.first_stage.latent_channels = kind, 2
        encode = with_variance if kind == "vae" else halves
        stage = FirstStage(
            kind, encode, painted, FAMILIES["gaussian"], num_codes=4 if kind == "vq" else 0
        )
        experiment = types.SimpleNamespace(
            config=config, stage=stage, network=types.SimpleNamespace(factor=8)
        )
        source = sources.load(
            name="digits", split="test", data_dir=data_dir, image_size=8, channels=1
        )
        digits = np.stack([source[i]["image"] for i in range(10)])
        drawing = first_stage_pictures.make_drawing(experiment, num_samples=10, seed=0)
        return drawing({"codebook": CODEBOOK}), digits

    return of


def levels(x):
    return np.clip(np.round(127.5 * (np.float64(x) + 1)), 0, 255)


def test_a_walk_shows_the_plane_at_the_priors_quantiles(draw):
    drawn, _ = draw("vae")
    assert drawn.pictures.keys() == {"first stage", "interpolation", "walk", "means"}
    assert drawn.pictures["walk"].shape == (20 * 33 + 1, 20 * 33 + 1, 1)
    cells = drawn.pictures["walk"][1:, 1:, 0].reshape(20, 33, 20, 33)
    expected = levels(stats.norm.ppf((np.arange(20) + 0.5) / 20))
    # left halves of a row: z 1, to the right
    np.testing.assert_allclose(cells[7, 16, :, 8], expected, atol=1)
    # right halves of a column: z 2, upwards
    np.testing.assert_allclose(cells[:, 16, 3, 24], expected[::-1], atol=1)


def test_an_interpolation_is_a_row_from_one_image_to_the_next(draw):
    drawn, digits = draw("ae")
    assert drawn.pictures.keys() == {"first stage", "interpolation"}
    assert drawn.numbers == {}
    x = digits / 127.5 - 1.0
    z = np.stack([x[..., :4, 0].mean(axis=(1, 2)), x[..., 4:, 0].mean(axis=(1, 2))], axis=-1)
    rows = []
    for i in range(0, 10, 2):
        path = [(1 - weight) * z[i] + weight * z[i + 1] for weight in np.linspace(0, 1, 9)]
        greys = np.repeat(np.tile(levels(path)[:, None, :, None], (1, 8, 1, 1)), 4, axis=2)
        rows += [digits[i], *greys, digits[i + 1]]
    expected = grid(np.stack(rows).astype(np.uint8), 11)
    # float32 at a half
    np.testing.assert_allclose(drawn.pictures["interpolation"].astype(int), expected, atol=1)


def test_between_two_images_of_a_vq_vae_are_codes_only(draw):
    drawn, _ = draw("vq")
    assert drawn.pictures.keys() == {"first stage", "interpolation", "codes"}
    cells = drawn.pictures["interpolation"][2:, 2:, 0].reshape(5, 66, 11, 66)[:, 32, 1:10, 16]
    assert set(cells.ravel()) <= set(levels(CODEBOOK[:, 0]))
    assert 1 <= drawn.numbers["held_out_perplexity"] <= 4


def test_the_codes_of_all_held_out_images_are_counted_and_not_of_those_alone_that_are_shown(
    draw, monkeypatch, data_dir
):
    counted = []
    monkeypatch.setattr(
        first_stage_pictures, "code_usage", lambda counts, title: counted.append((counts, title))
    )
    drawn, _ = draw("vq")
    source = sources.load(name="digits", split="test", data_dir=data_dir, image_size=8, channels=1)
    x = np.stack([source[i]["image"] for i in range(len(source))])[..., 0] / 127.5 - 1.0
    z = np.stack([x[..., :4].mean(axis=(1, 2)), x[..., 4:].mean(axis=(1, 2))], axis=-1)
    nearest = np.argmin(np.square(z[:, None] - CODEBOOK[None]).sum(axis=-1), axis=1)
    ((counts, title),) = counted
    np.testing.assert_array_equal(counts, np.bincount(nearest, minlength=4))
    p = counts / 300
    perplexity = np.exp(-sum(q * np.log(q) for q in p if q))
    assert drawn.numbers["held_out_perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert title.startswith(
        f"perplexity {perplexity:.1f} of 4 codes, {np.count_nonzero(counts)} used by 300 held-out"
    )
