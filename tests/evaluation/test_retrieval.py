"""Nearest pictures, and what chance gives."""

import itertools

import numpy as np
import pytest

from ddpm_jax import host_memory
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import retrieval
from ddpm_jax.evaluation.retrieval import chance_of_match, check_retrieval, nearest_images

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 3, 2, 3), np.uint8)


def test_the_nearest_of_a_set_to_its_own_pictures_are_themselves(monkeypatch):
    monkeypatch.setattr(retrieval, "_AT_A_TIME", 7)
    np.testing.assert_array_equal(nearest_images(IMAGES, IMAGES, 1)[:, 0], np.arange(40))


def test_the_order_is_that_of_the_distances():
    """Grey levels on a line: the order is read off them."""
    levels = np.array([200, 10, 90, 255, 60], np.uint8)
    candidates = np.broadcast_to(levels[:, None, None, None], (5, 2, 2, 1))
    images = np.full((1, 2, 2, 1), 80, np.uint8)
    np.testing.assert_array_equal(nearest_images(images, candidates, 4), [[2, 4, 1, 0]])


def test_of_equal_pictures_the_first_is_nearest():
    assert nearest_images(IMAGES[5:6], IMAGES[[3, 5, 5]], 2).tolist() == [[1, 2]]


@pytest.mark.parametrize(("matches", "count"), [(2, 1), (2, 3), (0, 3), (6, 3), (4, 3)])
def test_chance_is_the_share_of_draws_with_a_match(matches, count):
    draws = list(itertools.combinations(range(6), count))
    wanted = np.mean([min(draw) < matches for draw in draws])
    assert chance_of_match(np.array([matches]), 6, count) == pytest.approx(wanted)


def test_chance_is_the_mean_over_images():
    assert chance_of_match(np.array([1, 3]), 4, 1) == pytest.approx(0.5)


def test_distances_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(host_memory, "available", lambda: 2**20)
    with pytest.raises(UsageError, match="distances of 1,000 images to 5,000"):
        check_retrieval(1000, 5000, 64)
