"""A program for test_devices.py: trains on the devices it finds and writes what came out.

`on_devices.py PARALLEL OUT [RESUME]`: PARALLEL is a key of `sharding.PARALLEL`, OUT a directory for
results.npz and a checkpoint; RESUME is the OUT of another run, whose checkpoint is continued.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.losses import LOSSES
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.distributed.fsdp import PARALLEL
from ddpm_jax.distributed.pmap import bytes_per_device, check_batch_size
from ddpm_jax.errors import UsageError
from ddpm_jax.models.condition import null_condition
from ddpm_jax.models.unet import UNet
from ddpm_jax.randomness import base_key
from ddpm_jax.training.conditioning import Conditioning
from ddpm_jax.training.ema import Average
from ddpm_jax.training.objective import Drawing, Objective, diffusion_objective
from ddpm_jax.training.state import create
from ddpm_jax.training.step import StepOptions, make_train_step

BATCH, STEPS, SAVED_AT = 16, 10, 5
T = 4  # so few that importance sampling has seen every t ten times before the last step


def diffusion():
    """Dropout, flips, hidden labels, low-resolution images and importance sampling; T and network
    are tiny."""
    model = UNet(
        ch=32,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=(),
        dropout=0.2,
        out_channels=1,
        resolution=8,
        num_classes=3,
        low_res_channels=1,
    )
    x = jnp.zeros((1, 8, 8, 1))
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), x, jnp.zeros((1,)), null_condition(model, x)
    )["params"]
    # Noise in every layer: some start at zero, and then most of the gradient would be zero too.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
    objective = diffusion_objective(
        lambda params, x_t, time, condition, keys: model.apply(
            {"params": params}, x_t, time, condition, dropout_keys=keys
        ),
        make_process(Chain(make_betas("linear", T, beta_start=0.1, beta_end=0.5))),
        LOSSES["simple"],
        Drawing(True, Conditioning(num_classes=3, label_dropout=0.5, low_res_factor=2)),
        timestep_sampling="importance",
    )
    return objective, params


def remembering(objective):
    """The same objective, whose t and losses of the whole batch are kept for each step."""

    def update(state, aux):
        history, _ = state
        return objective.update(history, aux), (aux.t, aux.loss)

    return Objective(
        init=lambda params: (
            objective.init(params),
            (jnp.zeros((BATCH,), jnp.int32), jnp.zeros((BATCH,))),
        ),
        loss=lambda params, frozen, state, *rest: objective.loss(params, frozen, state[0], *rest),
        update=update,
        metrics=objective.metrics,
    )


def batch_at(step):
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (BATCH, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 3, BATCH, np.int32),
    }


def placed(parallelism, state):
    """The state laid out for the step; its leaves' shapes and where they are to be restored."""
    places = parallelism.shardings(state)
    template = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places
    )
    return parallelism.place(state), template


def train(parallelism, out, resume, results):
    objective, params = diffusion()
    objective = remembering(objective)
    optimizer = optax.sgd(0.05)  # Adam would hide a gradient of the wrong scale
    schedule, options = (
        optax.constant_schedule(0.05),
        StepOptions(ema=Average(0.9), accumulate_steps=2),
    )
    step = parallelism.map_step(
        make_train_step(objective, optimizer, schedule, options, parallelism.collectives)
    )
    state, template = placed(parallelism, create(params, optimizer, objective))
    if resume:
        restored, _ = Checkpointer(resume, keep_last=1).restore(template)
        state = parallelism.place(restored)
    results["bytes"], results["all_bytes"] = (
        bytes_per_device(state),
        sum(x.nbytes for x in jax.tree.leaves(state)),
    )
    results["pieces"] = sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)
    )
    results["copies"] = len(state.step.addressable_shards)
    saver, record, compilations = Checkpointer(out, keep_last=1), [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compilations.append(event)
    )
    for n in range(int(state.step), STEPS):
        batch, key = parallelism.to_devices([batch_at(n)]), base_key(3)
        compilations.clear()
        state, metrics = step(state, batch, key)
        results["compilations_of_last_step"] = compilations.count(
            "/jax/core/compile/backend_compile_duration"
        )
        t, losses = state.objective_state[1]
        record.append(
            (
                metrics["loss"],
                metrics["grad_norm"],
                np.asarray(t),
                np.asarray(losses),
                metrics["loss_q"],
            )
        )
        if n + 1 == SAVED_AT:
            saver.save(n + 1, state, {"batches": n + 1}, {})
    saver.close()
    for name, values in zip(
        ("loss", "grad_norm", "t", "losses", "loss_q"), zip(*record, strict=True), strict=True
    ):
        results[name] = np.asarray(jax.device_get(values))
    for name in ("params", "ema_params"):
        flat = [np.ravel(leaf) for leaf in jax.tree.leaves(getattr(state, name))]
        results[name] = np.concatenate(flat)
    results["history"], results["counts"] = state.objective_state[0]
    results["unequal_copies"] = sum(
        not np.array_equal(piece.data, leaf.addressable_shards[0].data)
        for leaf in jax.tree.leaves(state)
        if leaf.is_fully_replicated
        for piece in leaf.addressable_shards
    )


def gradients(parallelism, results):
    """The gradient that reaches the optimiser for an x w whose examples differ in scale from device
    to device."""
    rng = np.random.default_rng(0)
    scale = np.repeat([0.1, 1, 2, 0.3, 5, 0.2, 3, 1], BATCH // 8)[:, None]
    batch = {"x": (scale * rng.normal(size=(BATCH, 3))).astype(np.float32)}

    def loss(params, frozen, state, batch, key, index):
        losses = jnp.square(batch["x"] @ params - 1)
        return losses, losses

    objective = Objective(
        init=lambda params: (), loss=loss, update=lambda state, aux: (), metrics=lambda aux: {}
    )
    results["x"], results["w"] = batch["x"], np.float32([0.5, -1, 2])
    for name, options in {
        "plain": StepOptions(),
        "average": StepOptions(clip_norm=1.0, clip_scope="average"),
        "replica": StepOptions(clip_norm=1.0, clip_scope="replica"),
        "accumulated": StepOptions(accumulate_steps=2),
    }.items():
        if options.clip_scope == "replica" and not parallelism.collectives.per_device:
            continue
        schedule, sgd = optax.constant_schedule(1.0), optax.sgd(1.0)
        step = parallelism.map_step(
            make_train_step(objective, sgd, schedule, options, parallelism.collectives)
        )
        state, _ = placed(parallelism, create(jnp.asarray(results["w"]), sgd, objective))
        state, metrics = step(state, parallelism.to_devices([batch]), base_key(0))
        results[f"gradient_{name}"] = results["w"] - np.asarray(state.params)
        results[f"norm_{name}"] = metrics["grad_norm"]


def main():
    name, *directories = sys.argv[1:]
    parallelism, (out, *resume) = PARALLEL[name], map(pathlib.Path, directories)
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    if not resume:
        gradients(parallelism, results)
    train(parallelism, out, resume[0] if resume else None, results)
    try:
        check_batch_size(12)
        results["refusal"] = ""
    except UsageError as error:
        results["refusal"] = str(error)
    np.savez(out / "results.npz", **results)


if __name__ == "__main__":
    main()
