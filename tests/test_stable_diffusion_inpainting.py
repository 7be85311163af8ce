"""Networks for inpainting, which read a mask and the masked picture's latents besides x_t.

The network itself is compared with diffusers' in `interop/test_diffusers_text_unet_goldens.py`;
here is what it is given, and whole chains.
"""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import ddpm_jax
from ddpm_jax.errors import UsageError
from ddpm_jax.interop.clip_text import config_from_text_encoder, text_params_to_transformers
from ddpm_jax.models.text_encoder import TextEncoder
from ddpm_jax.tasks.picture_editing import painted_input

SD = pathlib.Path(__file__).parent / "goldens" / "sd"
pytestmark = pytest.mark.full
PROMPT = "a dog wearing hat"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The golden network for inpainting with the VAE of another, and a new encoder of texts."""
    folder = shutil.copytree(SD / "sd1", tmp_path_factory.mktemp("inpaint") / "sd")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copy(SD / "unets" / "inpaint9" / name, folder / "unet" / name)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionInpaintPipeline", "_diffusers_version": "0.42.1"}
    (folder / "model_index.json").write_text(json.dumps(index))
    vocabulary = json.loads((folder / "text_encoder" / "config.json").read_text())["vocab_size"]
    encoder = TextEncoder(vocab_size=vocabulary, width=24, layers=1, heads=2, hidden=48)
    params = encoder.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    tensors = text_params_to_transformers(jax.tree.map(np.asarray, params), encoder)
    save_file(tensors, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    (folder / "text_encoder" / "config.json").write_text(
        json.dumps(config_from_text_encoder(encoder))
    )
    return folder


@pytest.fixture(scope="module")
def model(directory):
    return ddpm_jax.load(directory)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (32, 32, 3), np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[9:22, 6:30] = 255
    return photo, mask


def test_without_a_picture_it_says_what_it_needs(model, pictures):
    for make in (
        lambda: model.sample(prompt=PROMPT),
        lambda: model.edit(pictures[0], prompt=PROMPT),
        lambda: model.interpolate(1, 2, prompt=PROMPT),
    ):
        with pytest.raises(UsageError, match="paints over a picture: give one by inpaint"):
            make()
    with pytest.raises(UsageError, match="jump belongs to RePaint, and this model"):
        model.inpaint(*pictures, jump=2, prompt=PROMPT)


def test_the_painted_part_is_grey_and_its_mask_that_of_the_first_pixels(model, pictures):
    photo, mask = pictures
    given = painted_input(model.trained, photo, mask[..., None] > 0)
    np.testing.assert_array_equal(given[..., 0], mask[::4, ::4] / 255)
    x = np.where(mask[..., None] > 0, 0, photo / 127.5 - 1).astype(np.float32)
    codec, frozen = model.trained.model.codec, model.trained.weights.frozen
    z = codec.space.encode(frozen, x[None])[0]
    np.testing.assert_allclose(given[..., 1:], z, atol=1e-5)


def test_pixels_outside_the_mask_are_kept(model, pictures):
    photo, mask = pictures
    images = model.inpaint(*pictures, prompt=PROMPT, steps=2, n=2)
    kept = np.broadcast_to(mask == 0, images.shape[:3])
    np.testing.assert_array_equal(images[kept], np.stack([photo] * 2)[kept])
    assert np.any(images[0] != images[1])


def test_every_latent_is_that_of_diffusers(directory, model, pictures, monkeypatch):
    """Their pipeline draws the masked picture's latents; here it takes their mean, as ours."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Posterior

    monkeypatch.setattr(Posterior, "sample", lambda posterior, generator=None: posterior.mode())
    pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
        directory, safety_checker=None, requires_safety_checker=False
    )
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    noise = np.random.default_rng(1).normal(size=(1, 8, 8, 4)).astype(np.float32)
    chain = []
    settings = {"prompt": PROMPT, "height": 32, "width": 32}
    theirs = pipeline(
        **settings,
        image=Image.fromarray(pictures[0]),
        mask_image=Image.fromarray(pictures[1]),
        guidance_scale=3.0,
        num_inference_steps=5,
        latents=torch.tensor(noise).permute(0, 3, 1, 2),
        output_type="latent",
        callback_on_step_end=lambda _, i, t, tensors: chain.append(tensors["latents"]) or tensors,
    ).images
    made = model.inpaint(
        *pictures,
        **settings,
        guidance=3.0,
        steps=5,
        sampler="ddim",
        levels="diffusers",
        noise=noise,
        trajectory=True,
    )
    wanted = torch.cat(chain).permute(0, 2, 3, 1).numpy()
    assert torch.equal(theirs, chain[-1])
    scale = max(1, np.abs(wanted).max() / 10)
    np.testing.assert_allclose(made.x_t[1:, 0], wanted, rtol=0, atol=5e-4 * scale)
