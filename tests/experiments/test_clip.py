"""A whole CLIP from its directory: features of pictures and texts, as transformers has them."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import clip as clips
from ddpm_jax.experiments.clip import load_clip
from ddpm_jax.models.image_encoder import MEAN, STD

TOKENIZER = pathlib.Path(__file__).parents[1] / "goldens" / "sd" / "sd1" / "tokenizer"
TEXTS = ["a red heart", "thumbs up", "thumbs up, dark skin tone"]
LENGTH = 77


def _preparation(size):
    return {
        "crop_size": {"height": size, "width": size},
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": 3,
        "size": {"shortest_edge": size},
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(the directory of a CLIPModel with random weights, the model)."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    vocab = json.loads((TOKENIZER / "vocab.json").read_text())
    text = {
        "vocab_size": len(vocab),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": LENGTH,
        "eos_token_id": vocab["<|endoftext|>"],
    }
    vision = {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    torch.manual_seed(0)
    network = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    network.save_pretrained(folder)
    for path in TOKENIZER.iterdir():
        shutil.copy(path, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_preparation(16)))
    return folder, network


@pytest.mark.full
@pytest.mark.parametrize(
    ("shape", "tolerance"),
    # pictures of another size are rounded to 8 bits on the way, some numbers the other way
    [((16, 16), 1e-5), ((20, 24), 2e-3)],
)
def test_similarities_are_those_of_transformers(checkpoint, monkeypatch, shape, tolerance):
    """Of uint8 pictures and of words: tokenizer, preparation, both towers and projections."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    monkeypatch.setattr(clips, "AT_A_TIME", 2)  # three texts and pictures: two parts
    folder, network = checkpoint
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 3), np.uint8)
    images = images.repeat(4, 1).repeat(4, 2)[:, : shape[0], : shape[1]]
    clip = load_clip(folder)
    ours = clip.of_images(images) @ clip.of_texts(TEXTS).T
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    pixels = torch.tensor(np.stack(processor(list(images)).pixel_values))
    ids = torch.tensor(clip.text.tokenizer(TEXTS), dtype=torch.long)
    with torch.no_grad():
        theirs = network(ids, pixels)
        cosines = theirs.logits_per_image / network.logit_scale.exp()
    np.testing.assert_allclose(ours, cosines.numpy(), atol=tolerance)
    np.testing.assert_allclose(np.linalg.norm(clip.of_images(images), axis=1), 1, rtol=1e-5)


@pytest.mark.full
def test_a_grey_picture_is_one_with_equal_colours(checkpoint):
    clip = load_clip(checkpoint[0])
    grey = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), np.uint8)
    np.testing.assert_allclose(
        clip.of_images(grey), clip.of_images(grey.repeat(3, axis=3)), atol=1e-6
    )


@pytest.mark.full
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
        ({"resample": 2}, "resample"),
        ({"size": {"shortest_edge": 20}}, "size"),
        ({"crop_size": 20}, "crop_size"),
    ],
)
def test_pictures_that_are_prepared_otherwise_are_refused(checkpoint, tmp_path, change, name):
    folder = shutil.copytree(checkpoint[0], tmp_path / "other")
    (folder / "preprocessor_config.json").write_text(json.dumps(_preparation(16) | change))
    with pytest.raises(UsageError, match=f"json has {name} = "):
        load_clip(folder)


def test_what_is_no_whole_clip_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"there is no config\.json"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(UsageError, match="holds no whole CLIP"):
        load_clip(tmp_path)
