"""Images a second of the CIFAR-10 network, by chains that are one program from noise to uint8."""

import time

import jax
import jax.numpy as jnp

from ddpm_jax import randomness
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler
from gpu_parts.networks import Measured, measured
from gpu_parts.ours import flop_per_image, random_params, with_products_if_refused
from gpu_parts.plan import Plan, Record, Save, Stopwatch, windows

# Sampler, steps that are walked, and the steps that figures are given for: those of an ancestral
# chain all cost the same.
CHAINS = (("ddim", 50, 50), ("dpmpp_2m", 20, 20), ("ancestral", 100, 1000))
SMALL_CHAINS = (("ddim", 3, 3), ("dpmpp_2m", 2, 2), ("ancestral", 2, 1000))


def measure(plan: Plan, save: Save) -> None:
    of = measured("unet", small=plan.small)
    images = 4 if plan.small else 256
    record: Record = {
        "dtype": "bfloat16",
        "images": images,
        "flop_per_evaluation": flop_per_image(of)["forward"],
        "chains": [],
    }
    params = jax.device_put(random_params(of))
    stopwatch = Stopwatch(plan)
    for name, walked, steps in SMALL_CHAINS if plan.small else CHAINS:
        if record["chains"] and not stopwatch.allows_another():
            record["note"] = f"There was no time for {name}, or for what follows it."
            break
        row, note = with_products_if_refused(
            lambda name=name, walked=walked: _chain(of, params, name, walked, images, plan)
        )
        row |= note | {"sampler": name, "steps": steps, "walked": walked}
        row["seconds"] = [window * steps / walked for window in row["seconds"]]
        record["chains"].append(row)
        save(record)
    save(record)


def _chain(of: Measured, params: dict, name: str, steps: int, images: int, plan: Plan) -> Record:
    chain = Chain(make_betas("linear", 1000, beta_start=1e-4, beta_end=0.02))
    sampler = make_sampler(name, chain, steps=steps, spacing="trailing")
    network = of.network.clone(dtype="bfloat16")
    shape = (of.image_size, of.image_size, of.channels)

    @jax.jit
    def generate(params, base_key):
        keys = randomness.image_keys(base_key, jnp.arange(images))
        denoiser = make_process(chain, "eps", "fixed_small").denoiser(
            lambda x_t, time: network.apply({"params": params}, x_t, time),
            sampler.schedule,
            clip="static",
        )
        x_0 = sample(denoiser, sampler, randomness.initial_noise(keys, shape), keys).x_0
        return jnp.round(127.5 * (jnp.clip(x_0, -1, 1) + 1)).astype(jnp.uint8)

    def call() -> jax.Array:
        return generate(params, jax.random.key(0))

    start = time.perf_counter()
    jax.block_until_ready(call())
    first_call = time.perf_counter() - start
    seconds = windows(call, jax.device_get, plan, seconds=0.0)
    return {
        "seconds": seconds,
        "evaluations": sampler.evaluations,
        "first_call_seconds": first_call,
    }
