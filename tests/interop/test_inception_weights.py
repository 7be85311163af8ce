"""The FID's Inception: its file of weights, what is refused, and the digests."""

import hashlib

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.inception_weights import PUBLISHED, inception_params, inception_shapes
from ddpm_jax.interop.published_weights import Published, check_digest, missing_weights

from .inception_files import random_state

CONVOLUTION = "Mixed_5b.branch5x5_2"


@pytest.fixture(scope="module")
def state():
    return random_state()


def test_there_are_as_many_tensors_and_numbers_as_in_the_published_file(state):
    assert len(state) == 566  # as those who load the file count them
    # 95,628,359 bytes, of which the zip's directory and the pickle are less than 300,000
    nbytes = sum(value.size * (8 if value.ndim == 0 else 4) for value in state.values())
    assert 0 < 95_628_359 - nbytes < 300_000


def test_a_batch_normalisation_becomes_part_of_its_convolution(state):
    """At one pixel, in float64: scale (W x - mean) / sqrt(var + 0.001) + bias."""
    kernel = state[f"{CONVOLUTION}.conv.weight"].astype(np.float64)
    patch = np.random.default_rng(0).normal(size=(5, 5, kernel.shape[1]))
    x = np.einsum("oihw,hwi->o", kernel, patch)
    scale, bias, mean, variance = (
        state[f"{CONVOLUTION}.bn.{name}"].astype(np.float64)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    expected = scale * (x - mean) / np.sqrt(variance + 0.001) + bias
    params = inception_params(state, source="it")["mixed_5b"]["branch5x5_2"]
    found = np.einsum("hwio,hwi->o", params["kernel"], patch) + params["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_classifier_has_no_bias(state):
    assert ("fc", "bias") not in inception_shapes()
    params = inception_params(state, source="it")
    np.testing.assert_array_equal(params["fc"]["kernel"], state["fc.weight"].T)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({f"{CONVOLUTION}.bn.running_var": None}, "w.pth lacks Mixed_5b.branch5x5_2.bn.running"),
        ({"layers.conv": np.zeros(1)}, "beyond the network's, layers.conv: it is not the FID's"),
        ({"fc.weight": np.zeros((1000, 2048))}, "an Inception of 1,000 classes"),
        ({f"{CONVOLUTION}.conv.weight": np.zeros((64, 48, 3, 3))}, "has shape .64, 48, 3, 3."),
        ({f"{CONVOLUTION}.conv.weight": np.zeros(64)}, "has shape .64."),
        ({f"{CONVOLUTION}.bn.bias": np.zeros(3)}, "has shape .64. and does not fit"),
        ({f"{CONVOLUTION}.bn.bias": np.full(64, np.inf)}, "no finite number"),
        ({"fc.weight": np.zeros((1008, 2048), np.int64)}, "is of type int64"),
    ],
)
def test_other_weights_are_refused(state, changes, sentence):
    found = {k: v for k, v in (state | changes).items() if v is not None}
    with pytest.raises(UsageError, match=sentence):
        inception_params(found, source="w.pth")


def test_what_training_alone_has_is_left_out(state):
    auxiliary = state | {"AuxLogits.conv0.conv.weight": np.zeros((2, 2))}
    assert inception_params(auxiliary, source="it").keys() == {
        path[0] for path in inception_shapes()
    }


def test_a_published_file_passes_and_another_is_told(tmp_path):
    content = b"the weights"
    digest = hashlib.sha256(content).hexdigest()
    published = (Published(f"w-{digest[:8]}.pth", digest, "there"),)
    for name in ("w.pth", f"w-{digest[:8]}.pth"):
        (tmp_path / name).write_bytes(content)
        assert check_digest(tmp_path / name, published) == (digest, None)
    (tmp_path / "mine.pth").write_bytes(b"others")
    digest, warning = check_digest(tmp_path / "mine.pth", published)
    assert digest == hashlib.sha256(b"others").hexdigest()
    assert digest in warning
    assert "is not w-" in warning


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path):
    path = tmp_path / PUBLISHED[0].name
    path.write_bytes(b"half of it")
    with pytest.raises(UsageError, match=r"another file than its name says.*with 6726825d"):
        check_digest(path, PUBLISHED)


def test_a_missing_file_is_said_in_a_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read from .*nothing\.pth .No such file"):
        check_digest(tmp_path / "nothing.pth", PUBLISHED)
    sentence = str(missing_weights("inception", PUBLISHED))
    for file in PUBLISHED:
        assert file.name in sentence
        assert file.sha256 in sentence
        assert file.sha256.startswith("6726825d")
