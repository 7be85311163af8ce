"""Conditions of an example: which labels are dropped, and the low-resolution image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.models.condition import Condition
from ddpm_jax.randomness import example_keys
from ddpm_jax.training.conditioning import Conditioning, drop_labels, make_condition

K, B = 7, 40


def labels(count=B):
    return jnp.arange(count, dtype=jnp.int32) % K


def images():
    """No 2x2 block has a mean halfway between two levels, which float32 and float64 might round
    apart."""
    pixels = np.random.default_rng(0).integers(1, 255, (B, 4, 6, 1))
    halfway = pixels.reshape(B, 2, 2, 3, 2, 1).sum(axis=(2, 4)) % 4 == 2
    pixels[:, ::2, ::2] += halfway
    return pixels.astype(np.uint8)


def enlarged(image):
    """4x6 pixels of float64 -> the mean of each 2x2 block, rounded to 0..255, and bilinear
    interpolation of that."""
    small = np.rint(image.reshape(2, 2, 3, 2).mean(axis=(1, 3)) * 127.5 + 127.5) / 127.5 - 1
    at = lambda size: (np.arange(size) + 0.5) / 2 - 0.5  # noqa: E731  centres of the fine pixels among the coarse
    rows = np.stack([np.interp(at(4), np.arange(2), column) for column in small.T], axis=1)
    return np.stack([np.interp(at(6), np.arange(3), row) for row in rows])


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_labels_are_hidden_at_the_rate_and_the_others_stay(rate):
    count = 20_000
    keys = example_keys(jax.random.key(0), "label", jnp.arange(count))
    told = drop_labels(Conditioning(K, rate), Condition(label=labels(count)), keys).label
    hidden = np.asarray(told == K)
    assert abs(hidden.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / count)
    np.testing.assert_array_equal(told[~hidden], labels(count)[~hidden])
    for label in range(K):  # whatever the label is
        of_label = hidden[np.asarray(labels(count)) == label]
        assert abs(of_label.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / of_label.size)


def test_without_label_dropout_every_label_stays():
    told = Condition(label=labels())
    keys = example_keys(jax.random.key(0), "label", jnp.arange(B))
    assert drop_labels(Conditioning(K), told, keys) is told
    assert drop_labels(Conditioning(), None, keys) is None


def test_a_model_is_told_what_its_fields_say_and_nothing_else():
    x_0 = jnp.asarray(images()) / 127.5 - 1
    assert make_condition(Conditioning(), x_0, labels()) is None
    assert make_condition(Conditioning(K), x_0, labels()).low_res is None
    assert make_condition(Conditioning(low_res_factor=2), x_0, labels()).label is None
    both = make_condition(Conditioning(K, 0.1, 2), x_0, labels())
    np.testing.assert_array_equal(both.label, labels())
    expected = np.stack([enlarged(np.float64(image[..., 0]) / 127.5 - 1) for image in images()])
    np.testing.assert_allclose(both.low_res[..., 0], expected, atol=1e-6)  # float32 against float64


@pytest.mark.full
def test_the_objective_hides_the_labels_of_its_stream_and_mirrors_what_it_shrinks(ddpm_objective):
    """Networks that return their condition: the loss is the error of that against the
    noise, by hand."""

    def objective(conditioning, answer):
        return ddpm_objective(
            lambda params, x_t, time, condition, keys: jnp.broadcast_to(
                answer(condition), x_t.shape
            ),
            Chain(make_betas("linear", 10, beta_start=0.01, beta_end=0.3)),
            conditioning=conditioning,
        )

    key, first = jax.random.key(3), 200
    batch = {"image": images(), "label": labels()}
    of_labels = objective(
        Conditioning(K, 0.5), lambda c: c.label[:, None, None, None].astype(jnp.float32)
    )
    of_images = objective(Conditioning(low_res_factor=2), lambda c: c.low_res)
    by_label, by_image = (
        o.loss((), (), (), batch, key, first + jnp.arange(B))[0] for o in (of_labels, of_images)
    )

    flipped = hidden = 0
    for i in range(B):
        eps_key, flip_key, label_key = (
            jax.random.fold_in(jax.random.fold_in(key, s), first + i) for s in (2, 3, 5)
        )
        eps = np.float64(jax.random.normal(eps_key, (4, 6, 1)))
        is_hidden, is_flipped = (
            bool(jax.random.bernoulli(label_key, 0.5)),
            bool(jax.random.bernoulli(flip_key)),
        )
        hidden, flipped = hidden + is_hidden, flipped + is_flipped
        x_0 = np.float64(images()[i, :, :, 0]) / 127.5 - 1
        low_res = enlarged(x_0[:, ::-1] if is_flipped else x_0)
        np.testing.assert_allclose(
            by_label[i], np.mean((eps - (K if is_hidden else i % K)) ** 2), rtol=1e-5
        )
        np.testing.assert_allclose(by_image[i], np.mean((eps[..., 0] - low_res) ** 2), rtol=1e-4)
    assert 0 < flipped < B
    assert 0 < hidden < B
