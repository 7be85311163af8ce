"""The stream of images for likelihoods: each image once, in its position.

The padding is made of images of the data.
"""

import numpy as np
import pytest

from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.batches import image_batches

IMAGES = np.arange(1, 11, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
SOURCE = ArraySource(IMAGES, np.zeros(10, np.int32), 0, "numbered")


@pytest.mark.parametrize(
    ("num_images", "batch_size", "done"), [(10, 4, 0), (7, 3, 0), (7, 3, 4), (10, 99, 9), (4, 4, 4)]
)
def test_every_image_that_is_not_done_comes_once_and_in_its_place(num_images, batch_size, done):
    batches = list(image_batches(SOURCE, num_images=num_images, batch_size=batch_size, done=done))
    index = [i for batch in batches for i in batch.index[batch.wanted]]
    assert index == list(range(done, num_images))
    for batch in batches:
        assert (
            len(batch.images)
            == len(batch.index)
            == len(batch.wanted)
            == min(batch_size, num_images)
        )
        # the rows that fill it too
        np.testing.assert_array_equal(batch.images, IMAGES[batch.index])


@pytest.mark.parametrize(
    ("first", "num_images", "done"), [(0, 10, 0), (3, 10, 3), (3, 8, 6), (5, 5, 5), (9, 10, 9)]
)
def test_batches_may_be_counted_from_any_image_on(first, num_images, done):
    batches = list(
        image_batches(SOURCE, num_images=num_images, batch_size=4, done=done, first=first)
    )
    assert [i for batch in batches for i in batch.index[batch.wanted]] == list(
        range(done, num_images)
    )
    for batch in batches:
        assert (batch.index[0] - first) % 4 == 0
        np.testing.assert_array_equal(batch.images, IMAGES[batch.index])


def test_the_last_batch_is_filled_with_its_last_image():
    *_, last = image_batches(SOURCE, num_images=9, batch_size=4)
    assert last.index.tolist() == [8, 8, 8, 8]
    assert last.wanted.tolist() == [True, False, False, False]


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(UsageError, match="batch_size is 0"):
        next(image_batches(SOURCE, num_images=9, batch_size=0))
