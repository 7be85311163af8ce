"""Pictures of a latent space, read back from their pixels."""

import numpy as np

from ddpm_jax.plotting.latent_plots import classes_in_plane, code_usage


def pixels_like(picture, colour, *, within):
    """Where a picture has about this colour: bool [H, W]."""
    return np.abs(picture.astype(int) - colour).sum(axis=-1) < within


def test_codes_stand_in_the_order_of_their_use_with_heights_in_proportion():
    picture = code_usage(np.array([5, 0, 40, 10]), title="four codes")
    assert (picture.dtype, picture.shape[-1]) == (np.uint8, 3)
    bars = pixels_like(picture, (0x1F, 0x4E, 0x79), within=60).sum(axis=0)
    left, right = np.flatnonzero(bars)[[0, -1]]
    width = (right + 1 - left) / 3  # the fourth has no height
    heights = [bars[int(left + (i + 0.5) * width)] for i in range(3)]
    # whole pixels, one line
    np.testing.assert_allclose(np.array(heights) / heights[0], [1, 0.25, 0.125], atol=0.02)


def test_classes_lie_where_their_points_do_in_colours_of_their_own():
    points = np.random.default_rng(0).normal(scale=0.2, size=(60, 2))
    labels = np.arange(60) % 2
    points[:, 0] += np.where(labels == 0, -2, 2)
    picture = classes_in_plane(points, labels, title="two classes")
    blue, orange = (31, 119, 180), (255, 127, 14)  # a point lets a fifth of the paper through
    first, second = (pixels_like(picture, colour, within=120) for colour in (blue, orange))
    half = picture.shape[1] // 2
    assert first[:, :half].sum() > 100 < second.sum()
    assert np.median(np.nonzero(first)[1]) < np.median(np.nonzero(second)[1])
    of_one = classes_in_plane(points, np.zeros(60, int), title="no classes")
    assert not pixels_like(of_one, orange, within=120).any()
