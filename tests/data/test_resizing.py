"""The resizers against their definitions, in loops, and against the packages that have them."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.resizing import RESIZERS, resized
from ddpm_jax.errors import UsageError

SIZES = [(8, 8, 19), (32, 32, 75), (40, 23, 17), (64, 64, 30)]  # height, width, new side


def pictures(height, width, channels=3):
    """Two random ones and a checkerboard, on which filters overshoot."""
    random = np.random.default_rng(height).integers(0, 256, (2, height, width, channels), np.uint8)
    board = (np.indices((height, width)).sum(axis=0) // 3 % 2 * 255).astype(np.uint8)
    return np.concatenate([random, np.broadcast_to(board[None, ..., None], random[:1].shape)])


def triangle(x):
    return max(0.0, 1.0 - abs(x))


def cubic(x, a=-0.5):
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def antialiased(before, after, kernel):
    """[after, before]: a kernel as wide as a new pixel, where that is wider than an old one."""
    scale = before / after
    wide = max(scale, 1.0)
    rows = np.array(
        [
            [kernel((j + 0.5 - (i + 0.5) * scale) / wide) for j in range(before)]
            for i in range(after)
        ]
    )
    return rows / rows.sum(axis=1, keepdims=True)


def neighbours(before, after, position):
    """[after, before]: the two pixels on either side of a position, the last one repeated."""
    rows = np.zeros((after, before))
    for i in range(after):
        place = max(position(i, before / after), 0.0)
        low = min(int(place), before - 1)
        rows[i, low] += 1 - (place - low)
        rows[i, min(low + 1, before - 1)] += place - low
    return rows


DEFINITIONS = {
    "clean": lambda before, after: antialiased(before, after, cubic),
    "bilinear_antialias": lambda before, after: antialiased(before, after, triangle),
    "tf1_bilinear": lambda before, after: neighbours(before, after, lambda i, scale: i * scale),
    "pytorch_bilinear": lambda before, after: neighbours(
        before, after, lambda i, scale: (i + 0.5) * scale - 0.5
    ),
}


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
@pytest.mark.parametrize("resizer", RESIZERS)
def test_a_resizer_is_its_definition(resizer, height, width, size):
    images = pictures(height, width)
    rows, columns = (DEFINITIONS[resizer](side, size) for side in (height, width))
    expected = np.einsum("ih,nhwc,jw->nijc", rows, images, columns).clip(0, 255)
    found = resized(images, size, resizer=resizer)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_rounded_antialiased_ones_are_pillow(height, width, size):
    images = pictures(height, width)
    for resizer, kind in (("clean", "BICUBIC"), ("bilinear_antialias", "BILINEAR")):
        found = resized(images, size, resizer=resizer, rounding="nearest")
        kind = Image.Resampling[kind]
        expected = [np.asarray(Image.fromarray(x).resize((size, size), kind)) for x in images]
        np.testing.assert_array_equal(found, expected)
        # within a level of rounding once, after both axes, save where the first cut off overshoot
        inexact = np.abs(found - np.rint(resized(images, size, resizer=resizer)))[:2]
        assert np.mean(inexact > 1) < 0.02


@pytest.mark.parametrize("resizer", RESIZERS)
def test_rounding_is_to_whole_levels_and_nowhere_else(resizer):
    images = pictures(20, 20, channels=1).astype(np.float32)
    exact = resized(images, 13, resizer=resizer)
    assert np.any(exact != np.rint(exact))
    for rounding, expected in (("nearest", np.rint(exact)), ("truncate", np.floor(exact))):
        found = resized(images, 13, resizer=resizer, rounding=rounding)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("resizer", RESIZERS)
def test_the_ramp_tells_where_pixels_lie(resizer):
    """Halving a ramp: centres onto centres, but in TensorFlow 1, where every other pixel stays."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32)[None, None, :, None], (1, 64, 64, 1))
    found = resized(ramp, 32, resizer=resizer)[0, 16, 4:-4, 0]
    shift = 0.0 if resizer == "tf1_bilinear" else 0.5
    np.testing.assert_allclose(found, 2 * np.arange(4, 28) + shift, atol=1e-4)


@pytest.mark.parametrize("resizer", RESIZERS)
def test_images_of_the_size_stay_as_they_are(resizer):
    images = pictures(16, 16)
    np.testing.assert_array_equal(resized(images, 16, resizer=resizer), images)


def test_pytorch_bilinear_is_pytorchs():
    torch = pytest.importorskip("torch")
    for height, width, size in [*SIZES, (32, 32, 299)]:
        images = pictures(height, width).astype(np.float32)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(images.transpose(0, 3, 1, 2)),
            size=(size, size),
            mode="bilinear",
            align_corners=False,
        )
        found = resized(images, size, resizer="pytorch_bilinear")
        np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=2e-3)


def test_antialiased_ones_are_pytorchs_within_a_level():
    torch = pytest.importorskip("torch")
    for height, width, size in SIZES:
        images = pictures(height, width).astype(np.float32)
        for resizer, mode in (("clean", "bicubic"), ("bilinear_antialias", "bilinear")):
            expected = torch.nn.functional.interpolate(
                torch.from_numpy(images.transpose(0, 3, 1, 2)),
                size=(size, size),
                mode=mode,
                antialias=True,
            ).clip(0, 255)
            found = resized(images, size, resizer=resizer)
            np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=0.01)


def test_tf1_bilinear_is_torch_fidelitys_to_the_bit():
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    for height, width, size in [*SIZES, (32, 32, 299)]:
        images = pictures(height, width)
        expected = peer.interpolate_bilinear_2d_like_tensorflow1x(
            torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)),
            size=(size, size),
            align_corners=False,
        )
        found = resized(images, size, resizer="tf1_bilinear")
        np.testing.assert_array_equal(found, expected.permute(0, 2, 3, 1))


def test_clean_is_clean_fids_to_the_bit():
    pytest.importorskip("torch")
    peer = pytest.importorskip("cleanfid.resize")
    for height, width, _ in SIZES:
        images = pictures(height, width)
        resize = peer.build_resizer("clean")
        found = resized(images, 299, resizer="clean")
        np.testing.assert_array_equal(found, [resize(image) for image in images])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"resizer": "bicubic"}, "Unknown resizer 'bicubic': choose one of bilinear_antialias, c"),
        ({"resizer": "clean", "rounding": "8bit"}, "Unknown rounding '8bit'"),
    ],
)
def test_unknown_names_are_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        resized(pictures(8, 8), 16, **options)
