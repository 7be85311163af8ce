"""A classifier of small images, and the classification accuracy score.

The score, of Ravuri & Vinyals 2019, asks if generated images teach the classes: a classifier
trained on them only is tested on real ones. The classifier is scikit-learn's logistic regression on
pixels, which serves for small images as a deep network does for large ones.
"""

from collections.abc import Callable

import numpy as np

from ddpm_jax import host_memory
from ddpm_jax.errors import UsageError

MAX_ITERATIONS = 1000
CLASSIFIER = "logistic regression on pixels"  # for records


def fit_classifier(images: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function uint8 [M, H, W, C] -> labels [M] of a classifier fitted to images.

    Args:
      images: uint8 [N, H, W, C].
      labels: int [N], of at least two classes.
    """
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(max_iter=MAX_ITERATIONS).fit(_pixels(images), labels)
    return lambda others: classifier.predict(_pixels(others))


def classification_accuracy_score(
    images: np.ndarray, labels: np.ndarray, real_images: np.ndarray, real_labels: np.ndarray
) -> float:
    """Return the accuracy on real images, in [0, 1], of a classifier fitted to the others.

    Args:
      images: uint8 [N, H, W, C], to which the classifier is fitted.
      labels: int [N], their classes.
      real_images: uint8 [M, H, W, C].
      real_labels: int [M].

    Raises:
      UsageError: as `check_labelled_sets`.
    """
    check_labelled_sets(labels, max(len(images), len(real_images)), int(np.prod(images.shape[1:])))
    classify = fit_classifier(images, labels)
    return float(np.mean(classify(real_images) == real_labels))


def _pixels(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float64) / 255


def check_labelled_sets(labels: np.ndarray, most: int, dims: int, *, besides: int = 0) -> None:
    """Refuse a score that cannot be computed, before there are images for it.

    Args:
      labels: int [N], of the images to fit the classifier to.
      most: images in the largest set, for fitting or testing.
      dims: numbers in an image.
      besides: bytes in use by the time the score is computed.

    Raises:
      UsageError: fewer than two classes to learn, or the memory needed is more than there is.
    """
    if len(np.unique(labels)) < 2:
        raise UsageError(
            "A classifier needs images of at least two classes: make more samples, or of more "
            "labels."
        )
    host_memory.check(
        2 * 8 * most * dims + besides,  # the pixels in float64, and scikit-learn's copy
        what=f"A classifier of {most:,} images of {dims:,} numbers",
        remedy="this score is for small images, so take another metric",
    )
