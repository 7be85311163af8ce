"""The objective of a classifier of noisy images: cross-entropy at a random t.

The network is `models.classifier`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import timesteps
from ddpm_jax.diffusion.gaussian import q_sample
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import choose
from ddpm_jax.randomness import example_keys, normal, stream
from ddpm_jax.training.objective import QUARTILES, Objective, batch_x_0, by_time, loss_over_time

# (params, x_t [B, H, W, C], time float32 [B], dropout keys [B]) -> logits [B, K]
ApplyClassifier = Callable[[Any, chex.Array, chex.Array, chex.PRNGKey], chex.Array]

TIMESTEP_SAMPLING = {"uniform": timesteps.uniform, "antithetic": timesteps.antithetic}


class ClassifierAux(NamedTuple):
    """Per-example results, [B]."""

    t: chex.Array
    loss: chex.Array
    correct: chex.Array  # whether the label is the likeliest class


def classifier_objective(
    apply: ApplyClassifier, schedule: Schedule, *, timestep_sampling: str, flip: bool
) -> Objective:
    """Return -log p(y|x_t), x_t ~ q(x_t|x_0) at a random t (Dhariwal & Nichol 2021, section 4).

    Args:
      apply: the network with its parameters as first argument.
      schedule: tables of all T steps of the chain that is to be guided.
      timestep_sampling: `uniform` or `antithetic`.
      flip: mirror each image with probability 1/2.

    Returns:
      An `Objective` over batches {"image": uint8 [B, H, W, C], "label": int32 [B]}, or with x_0 for
      the image as in `diffusion_objective`. Its metrics are the accuracy, and loss and accuracy in
      each quarter of the chain.

    Raises:
      UsageError: another timestep_sampling.
    """
    draw_t = choose("timestep sampling of a classifier", timestep_sampling, TIMESTEP_SAMPLING)
    num_timesteps = schedule.num_timesteps

    def loss_fn(params, frozen, state, batch, key, index):
        x_0, label = batch_x_0(batch, key, index, flip=flip), batch["label"]
        t = draw_t(stream(key, "t"), index, num_timesteps)
        eps = normal(example_keys(key, "eps", index), x_0.shape[1:])
        x_t = q_sample(schedule, x_0, t, eps)
        logits = apply(
            params, x_t, jnp.asarray(schedule.timesteps)[t], example_keys(key, "dropout", index)
        )
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]
        return loss, ClassifierAux(t, loss, jnp.argmax(logits, axis=1) == label)

    def metrics(aux):
        correct = aux.correct.astype(jnp.float32)
        return {
            "accuracy": (jnp.sum(correct), jnp.float32(aux.t.size)),
            "accuracy_q": tuple(by_time(aux.t, correct, num_timesteps, QUARTILES)),
            **loss_over_time(aux.t, aux.loss, num_timesteps),
        }

    return Objective(
        init=lambda params: (), loss=loss_fn, update=lambda state, aux: state, metrics=metrics
    )
