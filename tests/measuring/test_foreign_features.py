"""Features of other projects' networks, from a file of weights to numbers, and what is refused."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.torch_writing import write_torch
from ddpm_jax.measuring.feature_networks import load_features

from ..conftest import GOLDENS
from ..interop.dinov2_files import as_the_authors
from ..interop.dinov2_files import random_state as dinov2_state
from ..interop.inception_files import random_state as inception_state

COLOUR = (32, 32, 3)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    write_torch(path, inception_state())
    return path


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    save_file(dinov2_state(), folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "dinov2", "num_attention_heads": 2})
    )
    return folder


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDENS / "fid_inception.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        pytest.param("inception", "2048", marks=pytest.mark.full),
        pytest.param("inception_768", "768", marks=pytest.mark.slow),
        pytest.param("inception_192", "192", marks=pytest.mark.slow),
        pytest.param("inception_64", "64", marks=pytest.mark.slow),
    ],
)
def test_from_file_to_features_it_is_torch_fidelity(inception_file, goldens, name, layer):
    network = load_features(name, image_shape=COLOUR, weights=inception_file, batch_size=2)
    found = network.extract(goldens["images"])
    expected = goldens[f"torch_fidelity_{layer}"]
    assert expected.shape == (2, network.dims)
    np.testing.assert_allclose(found.features, expected, atol=1e-4)
    if name == "inception":
        expected = goldens["torch_fidelity_logits_unbiased"]
        assert expected.shape == (2, network.num_classes)
        np.testing.assert_allclose(found.logits, expected, atol=1e-4)
    else:
        assert found.logits is None


@pytest.mark.slow
def test_with_the_other_resizer_it_is_pytorch_fid(inception_file, goldens):
    network = load_features(
        "inception",
        image_shape=COLOUR,
        weights=inception_file,
        resize="pytorch_bilinear",
        batch_size=2,
    )
    found = network.extract(goldens["images"]).features
    np.testing.assert_allclose(found, goldens["pytorch_fid_2048"], atol=1e-4)
    # the two protocols differ by far more than that
    assert np.abs(found - goldens["torch_fidelity_2048"]).max() > 1e-3


def test_the_record_has_digest_resizer_rounding_and_scaling(inception_file, capsys):
    network = load_features("inception", image_shape=COLOUR, weights=inception_file)
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    assert {
        "sha256": digest,
        "input_size": 299,
        "resizer": "tf1_bilinear",
        "rounding": "none",
        "scaling": "(x - 128) / 128",
    }.items() <= network.record.items()
    assert f"warning: inception: {inception_file} (SHA-256 {digest}) is not" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_of_weights_that_are_of_another_network_only_that_is_said(name, tmp_path, capsys):
    path = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(UsageError, match=str(path)):
        load_features(name, image_shape=COLOUR, weights=path)
    assert capsys.readouterr().err == ""


def reference_dinov2(images, directory):
    """The features by transformers, of images that have the network's size."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=70
    )
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(directory)
    save_file(dinov2_state(), directory / "model.safetensors", metadata={"format": "pt"})
    network = transformers.Dinov2Model.from_pretrained(directory).eval()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = ((images / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return network(torch.tensor(x)).last_hidden_state[:, 0].numpy()


@pytest.mark.full
def test_from_directory_to_features_it_is_transformers_dinov2(dinov2_folder, tmp_path):
    """Up to the offset of the positions, which changes these features by a percent."""
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    network = load_features(
        "dinov2", image_shape=images.shape[1:], weights=dinov2_folder, batch_size=2
    )
    found = network.extract(images).features
    expected = reference_dinov2(images, tmp_path)
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 0.02
    assert network.record["resizer"] == "clean"
    assert network.record["rounding"] == "nearest"


def test_the_authors_file_has_the_features_of_the_directory(dinov2_folder, tmp_path):
    write_torch(tmp_path / "dinov2.pth", as_the_authors(dinov2_state()))
    by_folder, by_file = (
        load_features("dinov2", image_shape=(8, 8, 1), weights=path)
        for path in (dinov2_folder, tmp_path / "dinov2.pth")
    )
    assert by_folder.dims == by_file.dims == 32
    assert by_folder.record["weights_sha256"] == by_file.record["weights_sha256"]
    assert "sha256" in by_file.record


@pytest.mark.full
def test_clip_is_transformers_with_features_of_length_one(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        projection_dim=24,
    )
    theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    theirs.save_pretrained(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8)
    network = load_features("clip", image_shape=(28, 28, 3), weights=tmp_path, batch_size=2)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    x = ((images / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(torch.tensor(x)).image_embeds.numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = network.extract(images).features
    assert network.dims == 24
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "inception",
            {},
            "download pt_inception-2015-12-05-6726825d.pth .SHA-256 6726825d0af5f729",
        ),
        ("dinov2", {}, "download dinov2_vitl14_pretrain.pth"),
        ("clip", {}, "name a directory of a CLIPModel"),
        ("inception", {"weights": "no/file.pth"}, "cannot be read from no/file.pth"),
        ("inception", {"image_shape": (32, 32, 4)}, "have 4 channels"),
        ("clip", {"resize": "bicubic"}, "Unknown resizer 'bicubic'"),
        ("dinov2", {"rounding": "8bit"}, "Unknown rounding '8bit'"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(name, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        load_features(name, **({"image_shape": COLOUR} | options))


def test_weights_of_another_network_are_refused(dinov2_folder, inception_file, tmp_path):
    with pytest.raises(UsageError, match="not the FID's Inception"):
        load_features("inception", image_shape=COLOUR, weights=dinov2_folder)
    with pytest.raises(UsageError, match="none of DINOv2"):
        load_features("dinov2", image_shape=COLOUR, weights=inception_file)
    with pytest.raises(UsageError, match="no CLIP of transformers"):
        load_features("clip", image_shape=COLOUR, weights=inception_file)
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04 no zip file")
    with pytest.raises(UsageError, match="no whole file of weights"):
        load_features("inception", image_shape=COLOUR, weights=tmp_path / "w.pth")
