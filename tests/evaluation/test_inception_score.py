"""The Inception Score against closed forms and a loop over images."""

import itertools
import math

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.inception_score import inception_score

LOGITS = np.random.default_rng(0).normal(0, 3, (103, 7)).astype(np.float32)


def _score_of(rows):
    """exp of the mean KL of every image's classes from those of all, one number after another."""
    p = [[math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in rows.tolist()]
    q = [sum(column) / len(p) for column in zip(*p, strict=True)]
    kl = [sum(a * math.log(a / b) for a, b in zip(row, q, strict=True) if a > 0) for row in p]
    return math.exp(sum(kl) / len(kl))


@pytest.mark.parametrize("splits", [1, 10])
def test_it_is_the_loop_over_images(splits):
    edges = [i * 103 // splits for i in range(splits + 1)]
    scores = [_score_of(LOGITS[a:b]) for a, b in itertools.pairwise(edges)]
    found = inception_score(LOGITS, splits=splits, shuffle=False)
    assert found.value == pytest.approx(np.mean(scores), rel=1e-12)
    assert found.deviation == pytest.approx(np.std(scores), rel=1e-9, abs=1e-14)


def test_sure_and_various_labels_score_the_number_of_classes():
    # 1000 in float32 underflows every other class to probability 0
    logits = np.tile(1000 * np.eye(7, dtype=np.float32), (10, 1))
    assert inception_score(logits, splits=5, shuffle=False).value == pytest.approx(7, rel=1e-12)
    same = np.tile(LOGITS[:1], (50, 1))
    assert inception_score(same, splits=5).value == pytest.approx(1, rel=1e-12)


def test_a_constant_added_to_the_logits_of_an_image_changes_nothing():
    shifted = LOGITS.astype(np.float64) + np.arange(103)[:, None]
    assert inception_score(shifted) == pytest.approx(inception_score(LOGITS), rel=1e-12)


def test_the_images_are_shuffled_by_the_seed():
    ordered = LOGITS[np.argsort(LOGITS[:, 0])]
    plain, seeds = inception_score(ordered, shuffle=False), [0, 0, 1]
    shuffled = [inception_score(ordered, seed=seed) for seed in seeds]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert shuffled[0].value > plain.value, "a split of one class scores less"


def test_fewer_images_than_splits_are_refused():
    with pytest.raises(UsageError, match=r"Score of 10 splits needs at least 10 examples .* got 9"):
        inception_score(LOGITS[:9])
    with pytest.raises(UsageError, match="splits is 0"):
        inception_score(LOGITS, splits=0)
