"""The classification accuracy score, on images whose classes are known to be separable, or not."""

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.classification import classification_accuracy_score

RNG = np.random.default_rng(0)
LABELS = np.arange(300) % 3


def images(labels):
    """Bright in the third of the image that belongs to the class."""
    pixels = RNG.integers(0, 60, (len(labels), 3, 3, 1))
    pixels[np.arange(len(labels)), labels] += 150
    return pixels.astype(np.uint8)


def test_images_that_show_their_class_teach_it():
    assert classification_accuracy_score(images(LABELS), LABELS, images(LABELS), LABELS) == 1.0


def test_wrong_labels_teach_the_wrong_class_and_noise_none():
    assert (
        classification_accuracy_score(images((LABELS + 1) % 3), LABELS, images(LABELS), LABELS)
        == 0.0
    )
    noise = RNG.integers(0, 256, (300, 3, 3, 1)).astype(np.uint8)
    # a third by chance
    assert 0.15 < classification_accuracy_score(noise, LABELS, images(LABELS), LABELS) < 0.6


def test_one_class_is_refused():
    with pytest.raises(UsageError, match="at least two classes"):
        classification_accuracy_score(images(LABELS), 0 * LABELS, images(LABELS), LABELS)
