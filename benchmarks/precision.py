"""What bfloat16 computation changes on a trained model: loss, gradients and samples beside those of
float32.

    python benchmarks/precision.py --ckpt runs/digits [--batches 8] [--num_samples 300] [--steps 50]

Same float32 weights, same images, t, noise and masks. The yardstick of a gradient's error is the
distance of the gradients of two batches, that of a picture's another picture. Samples are DDIM's
from the same noise; the Fréchet distance of pixels of each set is to the training images.
"""

import jax
import jax.numpy as jnp
import numpy as np
from measuring import parser, report, setting

from ddpm_jax.data.in_memory import in_memory
from ddpm_jax.evaluation.pixel_frechet import pixel_frechet_distance
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.datasets import load_split
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.models import Model
from ddpm_jax.experiments.trainer import build_training
from ddpm_jax.generation.generating import make_generate
from ddpm_jax.randomness import base_key, stream
from ddpm_jax.samplers.registry import make_sampler

BATCH = 64


def in_dtype(model: Model, dtype: str) -> Model:
    """The same model, computed in another type."""
    config = model.config.copy_and_resolve_references()
    config.model.dtype = dtype
    return build(config)


def gradients(
    model: Model, params, images: np.ndarray, batches: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the losses [batches] and the gradients [batches, parameters] of the training
    objective."""
    objective = build_training(model).objective

    @jax.jit
    def value_and_grad(params, batch, key):
        def mean_loss(params):
            return jnp.mean(
                objective.loss(params, (), objective.init(params), batch, key, jnp.arange(BATCH))[0]
            )

        return jax.value_and_grad(mean_loss)(params)

    rng, losses, flat = np.random.default_rng(0), [], []
    for n in range(batches):
        batch = {
            "image": images[rng.integers(0, len(images), BATCH)],
            "label": np.zeros(BATCH, np.int32),
        }
        loss, gradient = value_and_grad(params, batch, jax.random.fold_in(base_key(0), n))
        losses.append(float(loss))
        flat.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)]))
    return np.array(losses), np.stack(flat)


def samples(model: Model, params, steps: int, count: int) -> np.ndarray:
    """uint8 [count, H, W, C]."""
    sampler = make_sampler("ddim", model.chain, steps=steps)
    generate = make_generate(model.denoiser, sampler, model.shape, decode=model.decode)
    return generate(Weights(params), stream(base_key(0), "eps"), np.arange(count)).images


def relative(difference: np.ndarray, of: np.ndarray) -> float:
    """The mean over batches of ‖difference‖ / ‖of‖."""
    return float(np.mean(np.linalg.norm(difference, axis=-1) / np.linalg.norm(of, axis=-1)))


def measure(ckpt: str, *, batches: int, num_samples: int, steps: int) -> dict:
    """Returns the result as a dict."""
    loaded = load_trained(ckpt)
    models = {dtype: in_dtype(loaded.model, dtype) for dtype in ("float32", "bfloat16")}
    config = loaded.model.config
    images = in_memory(load_split(config.data, config.data.train_split)).images
    loss, gradient, drawn = {}, {}, {}
    for dtype, model in models.items():
        loss[dtype], gradient[dtype] = gradients(model, loaded.params, images, batches)
        drawn[dtype] = samples(model, loaded.params, steps, num_samples)
    full, half = gradient["float32"], gradient["bfloat16"]
    pixels = np.float32(drawn["bfloat16"]) - np.float32(drawn["float32"])
    others = np.float32(np.roll(drawn["float32"], 1, axis=0)) - np.float32(drawn["float32"])
    return {
        **setting(),
        "step": loaded.step,
        "loss": {dtype: float(np.mean(values)) for dtype, values in loss.items()},
        "loss_relative_difference_of_a_batch": float(
            np.mean(np.abs(loss["bfloat16"] / loss["float32"] - 1))
        ),
        "loss_relative_difference_of_all": float(
            np.mean(loss["bfloat16"]) / np.mean(loss["float32"]) - 1
        ),
        "gradient_relative_error": relative(half - full, full),
        "gradient_relative_error_of_their_mean": relative(
            np.mean(half - full, axis=0), np.mean(full, axis=0)
        ),
        "gradient_relative_distance_of_two_batches": relative(
            np.roll(full, 1, axis=0) - full, full
        ),
        "samples": num_samples,
        "pixel_rms_difference_of_255": float(np.sqrt(np.mean(pixels**2))),
        "pixel_rms_difference_of_two_samples": float(np.sqrt(np.mean(others**2))),
        "share_of_pixels_equal": float(np.mean(pixels == 0)),
        "frechet_pixels": {
            dtype: pixel_frechet_distance(values, images) for dtype, values in drawn.items()
        },
    }


def main(argv: list[str] | None = None) -> dict:
    made = parser(__doc__)
    made.add_argument("--ckpt", required=True, help="directory of a training run")
    made.add_argument("--batches", type=int, default=8, help=f"of {BATCH} images")
    made.add_argument("--num_samples", type=int, default=300)
    made.add_argument("--steps", type=int, default=50, help="of DDIM")
    arguments = made.parse_args(argv)
    result = measure(
        arguments.ckpt,
        batches=arguments.batches,
        num_samples=arguments.num_samples,
        steps=arguments.steps,
    )
    report(result, arguments.json)
    return result


if __name__ == "__main__":
    main()
