"""Draws the walk of text_to_image.md: an image, its latents, noise in them, one prediction.

    python docs/text_walk.py --ckpt runs/emoji_text photo.png "a red apple" walk.png

Any model of texts over latents will do, Stable Diffusion too.
"""

import argparse

import jax
import numpy as np

import ddpm_jax
from ddpm_jax.diffusion.gaussian import q_sample
from ddpm_jax.plotting.grids import enlarge, grid, save_png, with_labels

TIMES = (40, 400)


def walk(model: ddpm_jax.Model, photo: str, prompt: str) -> dict[str, np.ndarray]:
    """Title -> latents [h, w, c] of every row: z_0, then z_t and the predicted z_0."""
    z_0 = model.encode(photo)[None]
    denoiser = model.denoiser(prompt=prompt, guidance=1)
    noise = jax.random.normal(jax.random.key(5), z_0.shape)
    rows = {"z_0": z_0[0]}
    for time in TIMES:
        t = np.full(1, time)
        z_t = q_sample(denoiser.schedule, z_0, t, noise)
        rows[f"z_t, t = {time}"] = np.asarray(z_t[0])
        rows[f"its z_0, predicted at {time}"] = np.asarray(denoiser(z_t, t).x_0[0])
    return rows


def pictures(model: ddpm_jax.Model, z: np.ndarray) -> np.ndarray:
    """Latents decoded, then their channels, grey from -3 to 3: uint8 [1 + c, H, W, 3]."""
    image = model.decode(z)
    levels = np.clip(np.moveaxis(z, -1, 0) * 127.5 / 3 + 127.5, 0, 255).astype(np.uint8)
    channels = enlarge(levels[..., None], image.shape[0]).repeat(3, axis=-1)
    return np.concatenate([image[None], channels])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("photo")
    parser.add_argument("prompt")
    parser.add_argument("out")
    flags = parser.parse_args()
    model = ddpm_jax.load(flags.ckpt)
    rows = walk(model, flags.photo, flags.prompt)
    images = [pictures(model, z) for z in rows.values()]
    picture = grid(np.concatenate(images), columns=len(images[0]))
    save_png(flags.out, with_labels(picture, rows=list(rows)))


if __name__ == "__main__":
    main()
