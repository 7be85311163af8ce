"""Bounds and errors of first stages over images, on models whose likelihood is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation import first_stage_scores as evaluation
from ddpm_jax.evaluation.dequantization import dequantize
from ddpm_jax.monitoring import results
from ddpm_jax.variational import pca
from ddpm_jax.variational.first_stage import FirstStage
from ddpm_jax.variational.observation import FAMILIES

N, SIDE, LATENTS = 20, 3, 2
RNG = np.random.default_rng(0)
D = SIDE * SIDE


class Images:
    """A source of the images it is given."""

    image_shape = (SIDE, SIDE, 1)

    def __init__(self, images):
        self._images = images

    def __len__(self):
        return len(self._images)

    def gather(self, indices):
        return {"image": self._images[indices], "label": np.zeros(len(indices), np.int32)}


def _images():
    x = 0.2 * RNG.normal(size=(N, LATENTS)) @ RNG.normal(size=(LATENTS, D)) + 0.1 * RNG.normal(
        size=(N, D)
    )
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8).reshape(N, SIDE, SIDE, 1)


IMAGES = _images()
MODEL = pca.fit(np.asarray(to_model_range(IMAGES)).reshape(N, D), LATENTS)
PARAMS = jax.tree.map(np.float32, MODEL)


def _encode(model, x, keys):
    posterior = pca.posterior(model, x.reshape(len(x), D))
    return jnp.concatenate(posterior, axis=-1)[:, None, None, :]


def _decode(model, z, keys):
    return (z[:, 0, 0] @ model.weights.T + model.mean[None]).reshape(-1, SIDE, SIDE, 1)


LINEAR = FirstStage(
    "vae", _encode, _decode, FAMILIES["gaussian"], log_scale=float(0.5 * np.log(MODEL.variance))
)


def _scores(stage, params, images=IMAGES, *, num_draws, num_codes=0, **options):
    scores = evaluation.no_scores(num_draws, LATENTS, num_codes)
    options = {"seed": 0, "num_images": len(images), "batch_size": 8} | options
    for batch in evaluation.stream_scores(
        stage, params, Images(images), num_draws=num_draws, **options
    ):
        scores = evaluation.merge(scores, batch)
    return scores


@pytest.mark.full
def test_with_the_exact_posterior_the_bounds_are_those_of_principal_components():
    """-log P(x) = -log E_u p(x + u) by 2,000 draws of u from the closed form.

    The bounds of 500 draws lie above it.
    """
    scores = _scores(LINEAR, PARAMS, num_draws=500)
    u = RNG.uniform(size=(2000, N, D)).astype(np.float32)
    log_p = jax.lax.map(lambda u: pca.log_prob(PARAMS, dequantize(IMAGES.reshape(N, D), u)), u)
    exact = (-jax.nn.logsumexp(log_p, axis=0) + np.log(2000)) / (D * np.log(2)) + np.log2(127.5)
    # of the weights the spread is 0.02 nats: a hundredth of that is left, and less in bits per
    # dimension
    np.testing.assert_allclose(scores.importance_weighted, exact, atol=1e-3)
    elbo = scores.elbo.mean(axis=1)
    errors = scores.elbo.std(axis=1) / np.sqrt(500)
    assert np.all(elbo > exact - 4 * errors)
    assert np.mean(elbo - exact) < 0.01
    x = (np.float64(IMAGES) / 127.5 - 1).reshape(N, D)
    precision = np.square(MODEL.weights).sum(axis=0) + MODEL.variance
    mean, variance = (x - MODEL.mean) @ MODEL.weights / precision, MODEL.variance / precision
    exact_kl = 0.5 * (mean**2 + variance - 1 - np.log(variance))
    np.testing.assert_allclose(scores.kl_per_channel, exact_kl, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores.kl, exact_kl.sum(axis=1) / (D * np.log(2)), rtol=1e-4)


def test_a_decoder_that_ignores_z_has_the_likelihood_of_its_distribution_and_no_kl():
    stage = FirstStage(
        "vae",
        lambda params, x, keys: jnp.zeros((len(x), 1, 1, 2 * LATENTS)),
        lambda params, z, keys: jnp.full((len(z), SIDE, SIDE, 1), 0.1),
        FAMILIES["discretized_logistic"],
        log_scale=-1.0,
    )
    scores = _scores(stage, {}, num_draws=3)
    distribution = stats.logistic(0.1, np.exp(-1))
    x = np.asarray(to_model_range(IMAGES), np.float64)
    mass = distribution.cdf(np.where(IMAGES == 255, np.inf, x + 1 / 255)) - distribution.cdf(
        np.where(IMAGES == 0, -np.inf, x - 1 / 255)
    )
    expected = -np.log2(mass).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(scores.importance_weighted, expected, rtol=1e-5)
    np.testing.assert_allclose(scores.elbo, np.repeat(expected[:, None], 3, axis=1), rtol=1e-5)
    assert not np.any(scores.kl)
    np.testing.assert_allclose(
        scores.mse, ((IMAGES - 1.1 * 127.5) ** 2).mean(axis=(1, 2, 3)), rtol=1e-5
    )


def test_a_vq_vae_pays_for_its_codes_and_counts_them():
    codebook = jnp.float32([[-0.3, 0.0], [0.0, 0.0], [0.3, 0.0]])
    stage = FirstStage(
        "vq",
        lambda params, x, keys: x[:, :1, :, :] * jnp.float32([[[[1.0, 0.0]]]]),
        lambda params, z, keys: jnp.repeat(z[..., :1], 3, axis=1),
        FAMILIES["discretized_logistic"],
        log_scale=-1.0,
        num_codes=3,
    )
    scores = _scores(stage, {"codebook": codebook}, num_draws=1, num_codes=3)
    np.testing.assert_allclose(scores.kl, np.full(N, 3 * np.log2(3) / D), rtol=1e-6)
    np.testing.assert_allclose(scores.importance_weighted, scores.elbo[:, 0], rtol=1e-6)
    nearest = np.abs(np.asarray(to_model_range(IMAGES))[:, 0, :, 0, None] - [-0.3, 0, 0.3]).argmin(
        -1
    )
    np.testing.assert_array_equal(scores.codes, np.bincount(nearest.ravel(), minlength=3))


@pytest.mark.full
def test_an_images_scores_are_its_own_whatever_the_batch_and_where_a_run_goes_on():
    whole = _scores(LINEAR, PARAMS, num_draws=2)
    other = _scores(LINEAR, PARAMS, num_draws=2, batch_size=3, done=5)
    np.testing.assert_allclose(other.elbo, whole.elbo[5:], rtol=1e-5)
    assert not np.allclose(whole.elbo[:, 0], whole.elbo[:, 1], atol=1e-3)


def test_a_number_that_is_not_finite_is_refused_with_its_image():
    params = PARAMS._replace(mean=np.full(D, np.nan, np.float32))
    with pytest.raises(FailureError, match="bound of image 0 is not a finite number"):
        _scores(LINEAR, params, num_draws=1)


def test_a_plain_autoencoder_has_no_bound():
    with pytest.raises(UsageError, match="ask for reconstruction"):
        evaluation.check_has_elbo(LINEAR._replace(kind="ae"))


@pytest.mark.parametrize("num_codes", [0, 4])
def test_scores_of_a_model_with_and_without_codes_come_back_from_disk(tmp_path, num_codes):
    empty = evaluation.no_scores(2, 3, num_codes)
    rows = [
        np.arange(5.0 * np.prod(part.shape[1:])).reshape(5, *part.shape[1:]) for part in empty[:-1]
    ]
    scores = evaluation.Scores(*rows, np.arange(num_codes))
    results.save_tally(tmp_path / "scores.npz", scores, {"seed": 0})
    found = results.load_tally(tmp_path / "scores.npz", {"seed": 0}, empty)
    for ours, theirs in zip(found, scores, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    results.save_tally(tmp_path / "scores.npz", scores._replace(mse=scores.mse[:4]), {"seed": 0})
    with pytest.raises(FailureError, match=r"scores\.npz is damaged"):
        results.load_tally(tmp_path / "scores.npz", {"seed": 0}, empty)
