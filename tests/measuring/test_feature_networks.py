"""Features by name: their numbers, whether they depend on the batch, and what is refused."""

import hashlib
import importlib.resources
import importlib.util
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.digits import scans
from ddpm_jax.errors import UsageError
from ddpm_jax.measuring.feature_networks import load_features

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    path = ROOT / "tools" / "train_digit_features.py"
    spec = importlib.util.spec_from_file_location("train_digit_features", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits():
    return load_features("digits", image_shape=(8, 8, 1), batch_size=100)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return module(source): the name of a module of the user's, on the Python path."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(source):
        made.append(f"users_features_{len(made)}")
        (tmp_path / f"{made[-1]}.py").write_text(f"import numpy as np\n{source}")
        return made[-1]

    yield make
    for name in made:
        sys.modules.pop(name, None)


def _npz():
    place = importlib.resources.files("ddpm_jax.measuring").joinpath("digit_features.npz")
    return place.read_bytes()


def test_pixels_are_the_image_on_0_to_1():
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 3), np.uint8)
    network = load_features("pixels", image_shape=(2, 4, 3))
    features, logits = network.extract(images)
    assert network.dims == 24
    assert logits is None
    np.testing.assert_allclose(features, images.reshape(3, 24) / 255, rtol=1e-7)
    assert features.dtype == np.float32


def test_the_logits_of_digits_classify_held_out_ones(digits, tool):
    images, labels = tool.split()[1]
    features, logits = digits.extract(images)
    assert features.shape == (300, digits.dims) == (300, 64)
    assert logits.shape == (300, digits.num_classes) == (300, 10)
    assert np.mean(np.argmax(logits, axis=1) == labels) > 0.98


def test_the_logits_of_digits_are_a_linear_map_of_their_features(digits):
    images, _ = scans()
    features, logits = digits.extract(images[:200])
    with_bias = np.concatenate([features, np.ones((200, 1))], axis=1)
    solution, *_ = np.linalg.lstsq(with_bias, logits, rcond=None)
    np.testing.assert_allclose(with_bias @ solution, logits, atol=1e-3)
    assert np.linalg.matrix_rank(features - features.mean(axis=0), tol=1e-3) == 64


def test_features_do_not_depend_on_the_batch(digits):
    images, _ = scans()
    whole = digits.extract(images[:250])
    one_by_one = [digits.extract(images[i : i + 1]).features[0] for i in (0, 99, 100, 249)]
    np.testing.assert_array_equal(whole.features[[0, 99, 100, 249]], one_by_one)


def test_the_record_says_what_decides_the_numbers(digits):
    assert digits.record == {
        "sha256": hashlib.sha256(_npz()).hexdigest(),
        "input_size": 8,
        "resizer": None,
        "rounding": "none",
    }


def test_digits_of_another_size_are_resized_if_asked_for(digits):
    images, _ = scans()
    doubled = images[:50].repeat(2, axis=1).repeat(2, axis=2)
    network = load_features("digits", image_shape=(16, 16, 1), resize="bilinear_antialias")
    by_pillow = np.stack(
        [
            Image.fromarray(image[..., 0]).resize((8, 8), Image.Resampling.BILINEAR)
            for image in doubled
        ]
    )
    np.testing.assert_allclose(
        network.extract(doubled).features,
        digits.extract(by_pillow[..., None]).features,
        atol=0.2,  # half a level of rounding
    )
    assert network.record["resizer"] == "bilinear_antialias"


@pytest.mark.full
def test_a_short_training_finds_the_way(tool):
    training, held_out = tool.split()
    weights = tool.train(*training, steps=60)
    assert tool.accuracy(weights, *held_out) > 0.85
    assert tool.as_npz(weights) == tool.as_npz(tool.train(*training, steps=60))


@pytest.mark.slow
def test_trained_again_it_is_the_network_that_comes_with_the_package(tool):
    weights = tool.train(*tool.split()[0])
    with np.load(importlib.resources.files("ddpm_jax.measuring") / "digit_features.npz") as there:
        assert set(there.files) == set(weights)
        for name in there.files:  # sums are taken in another order on other machines
            np.testing.assert_allclose(weights[name], there[name], atol=5e-3)


def test_a_function_of_the_user_is_called_with_batches_of_one_size(module):
    name = module(
        "SIZES = []\n"
        "def features(images):\n"
        "    SIZES.append(images.shape)\n"
        "    return images.reshape(len(images), -1)[:, :3].astype(np.float64) + 0.5\n"
    )
    network = load_features(f"{name}:features", image_shape=(2, 2, 1), batch_size=4)
    images = np.arange(36, dtype=np.uint8).reshape(9, 2, 2, 1)
    features = network.extract(images).features
    assert (network.name, network.dims) == (f"{name}:features", 3)
    np.testing.assert_array_equal(features, images.reshape(9, 4)[:, :3] + 0.5)
    assert set(sys.modules[name].SIZES) == {(4, 2, 2, 1)}


@pytest.mark.parametrize(
    ("source", "function", "sentence"),
    [
        ("", "features", "has no attribute 'features'"),
        ("features = 3", "features", "is no function"),
        ("def features(images): return images", "features", r"returned uint8 \[4, 2, 2, 1\]"),
        ("def features(images): return images[:1].reshape(1, -1)", "features", "returned uint8"),
        ("def features(images): return [['a']] * 4", "features", "returned <U1"),
        ("def features(): return 0", "features", r"fails on black .* \(TypeError: features\(\)"),
    ],
)
def test_a_function_that_makes_no_features_is_refused(module, source, function, sentence):
    with pytest.raises(UsageError, match=sentence):
        load_features(f"{module(source)}:{function}", image_shape=(2, 2, 1), batch_size=4)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("digit", {}, "Unknown features 'digit'.*Did you mean 'digits'"),
        ("pixels", {"weights": "x.pth"}, "features pixels have no weights"),
        ("pixels", {"resize": "clean"}, "features pixels have no resize"),
        ("digits", {"weights": "x.pth"}, "features digits have no weights"),
        ("digits", {"image_shape": (8, 8, 3)}, "of grey images of 8x8 pixels.*8x8x3.*resize clean"),
        ("digits", {"image_shape": (16, 8, 1)}, "16x8x1.*resize clean"),
        ("digits", {"resize": "cubic"}, "Unknown resizer 'cubic'"),
        ("digits", {"rounding": "up"}, "Unknown rounding 'up'"),
        ("digits", {"batch_size": 0}, "batch_size is 0"),
        ("no_such_module:f", {}, "No module named 'no_such_module'"),
    ],
)
def test_what_there_is_not_is_said_in_a_sentence(name, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        load_features(name, **({"image_shape": (8, 8, 1)} | options))


def test_colour_becomes_grey_for_the_digits_network_where_a_resizer_is_named(digits):
    """As Pillow's, which rounds grey to 8 bits."""
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    network = load_features("digits", image_shape=(8, 8, 3), resize="clean")
    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    expected = digits.extract(grey[..., None]).features
    found = network.extract(images).features
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert network.record["grey"] == "0.299 R + 0.587 G + 0.114 B"
    # the channels are not taken in another order
    assert np.abs(network.extract(images[..., ::-1]).features - expected).max() > 1


@pytest.mark.full
def test_features_are_the_same_on_eight_devices(digits, run_python, tmp_path):
    images, _ = scans()
    np.save(tmp_path / "images.npy", images[:45])
    run_python(
        "-c",
        "import sys, numpy as np\n"
        "from ddpm_jax.measuring.feature_networks import load_features\n"
        "network = load_features('digits', image_shape=(8, 8, 1), batch_size=20)\n"
        "found = network.extract(np.load(sys.argv[1] + '/images.npy'))\n"
        "np.savez(sys.argv[1] + '/found.npz', features=found.features, logits=found.logits)\n",
        tmp_path,
        devices=8,
    )
    expected = digits.extract(images[:45])
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["features"], expected.features, atol=1e-4)
        np.testing.assert_allclose(found["logits"], expected.logits, atol=1e-4)
