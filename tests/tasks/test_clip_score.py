"""The CLIP score of samples whose features are known."""

import dataclasses

import numpy as np
import pytest

from ddpm_jax.measuring import clip_score as metric
from ddpm_jax.measuring.evaluation_settings import ClipScore, EvaluatedImages
from ddpm_jax.tasks.sampling_settings import Sampling

PROMPTS = ("one", "two")
N = 6


@dataclasses.dataclass(frozen=True)
class Known:
    """Pictures and texts as points on a circle, at angles in degrees."""

    texts: dict
    sha256: str = "0123456789"

    def of_images(self, images):
        return _points(images[:, 0, 0, 0])

    def of_texts(self, texts):
        return _points([self.texts.get(text, 0) for text in texts])


def _points(degrees):
    radians = np.deg2rad(np.asarray(degrees, np.float32))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def _measured(monkeypatch, trained, samples, texts, prompt):
    monkeypatch.setattr(metric, "load_clip", lambda name: Known(texts))
    monkeypatch.setattr(metric, "draw_samples", lambda generator, settings: samples)
    sampling = Sampling(sampler="ddim", steps=2, prompt=prompt)
    settings = ClipScore(num_samples=len(samples), sampling=sampling, clip_model="known")
    return metric.clip_score(trained, EvaluatedImages(), settings)


def _pictures(degrees):
    return np.broadcast_to(
        np.array(degrees, np.uint8)[:, None, None, None], (len(degrees), 8, 8, 1)
    )


def test_the_score_is_the_mean_cosine_of_each_sample_and_its_own_prompt(monkeypatch, reads_texts):
    angles, of_text = [0, 90, 60, 30, 0, 90], {"one": 0, "two": 90}
    found = _measured(monkeypatch, reads_texts, _pictures(angles), of_text, PROMPTS)
    # samples 0, 2, 4 are of "one" and 1, 3, 5 of "two"
    cosines = np.array([1, 1, 0.5, 0.5, 1, 1])
    assert found.values["score"].mean == pytest.approx(100 * 5 / 6)
    error = 100 * cosines.std(ddof=1) / np.sqrt(N)
    assert found.values["score"].standard_error == pytest.approx(error)
    pairs = np.cos(np.deg2rad(np.subtract.outer(angles, [0, 90, 0, 90, 0, 90])))
    assert found.values["any_prompt"] == pytest.approx(100 * pairs.mean(), rel=1e-5)
    assert found.values["clip_model"] == {"name": "known", "sha256": "0123456789"}
    assert "_clip01234567_" in found.suffix
    assert found.values["prompt"] == list(PROMPTS)


def test_captions_of_a_split_have_its_own_pictures_beside_the_samples(monkeypatch, reads_texts):
    found = _measured(monkeypatch, reads_texts, _pictures([60] * 3), {}, None)
    assert found.values["score"].mean == pytest.approx(50)
    # the corner of nearly every digit is empty, as is the angle of all texts here
    assert found.values["held_out"]["score"].mean == pytest.approx(100)
    assert found.values["prompts"]["number"] == 3
