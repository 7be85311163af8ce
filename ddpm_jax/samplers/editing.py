"""Samples that start from a picture instead of noise, or keep a part of one: SDEdit, RePaint,
slerp.

Image-to-image: `start_from` shortens the times, `noised` gives x_T, and any sampler walks from
there. Inpainting: `keep_known` makes a denoiser that knows some pixels, for any sampler; `repaint`
is the sampler that goes back and forth so that the painted part agrees with them. Between two
seeds: `slerp`. From a picture to its own x_T and back is in `inversion`; reading the pictures is
not done here.

A mask is True, white in an image file, where the picture is to be painted anew.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.chain import Chain, check_chain
from ddpm_jax.diffusion.denoiser import Denoiser, check_denoiser
from ddpm_jax.diffusion.gaussian import extract, q_sample
from ddpm_jax.diffusion.parameterization import Prediction, eps_from_x_0
from ddpm_jax.diffusion.schedules import Schedule, step_variance
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import initial_noise
from ddpm_jax.samplers import ancestral
from ddpm_jax.samplers.linear import levels_at
from ddpm_jax.samplers.loop import Noise, Sampler

JUMPS_PER_CHAIN = 25  # Lugmayr et al. 2022, section 5: jumps of 10 in 250 steps
AGAIN = 1  # a row's second noise, that of its jump
PARALLEL = 1e-4  # radians: below it an arc and its chord differ by less than float32 can say


def start_from(times: np.ndarray, strength: float) -> np.ndarray:
    """The lowest round(strength N) of N times, at least one: the levels SDEdit visits (Meng et al.
    2022).

    Build the sampler on what is returned: its first steps, which may have no history yet, are then
    made for them.

    Args:
      times: [N], increasing: `spacing.space`.
      strength: how much is left to the model, in (0, 1]; 1 is every step.

    Raises:
      UsageError: strength outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise UsageError(
            f"strength is {strength}: choose above 0 (the picture as it is) to 1 (all of the "
            "steps)."
        )
    return times[: max(1, round(strength * len(times)))]


def noised(schedule: Schedule, x_0: chex.Array, keys: chex.PRNGKey) -> chex.Array:
    """x_T = √ᾱ x_0 + √(1-ᾱ) ε at the noisiest row of `schedule`; ε is the x_T that the image's key
    gives to a sample.

    Args:
      schedule: of the times that are walked, `chain.at(times)`.
      x_0: float32 [B, H, W, C] in [-1, 1].
      keys: [B], of `randomness.image_keys`.

    Returns:
      float32 [B, H, W, C].
    """
    t = jnp.full(x_0.shape[:1], schedule.num_timesteps - 1)
    return q_sample(schedule, x_0, t, initial_noise(keys, x_0.shape[1:]))


def keep_known(denoiser: Denoiser, known: chex.Array, mask: chex.Array) -> Denoiser:
    """A denoiser that is sure of the known pixels; every sampler then ends with them, to rounding.

    There it is the exact denoiser of data that is this one picture: x_0 is the picture, ε what is
    left of x_t. For `ancestral.step` mean and variance are those of q(x_{t-1}|x_0), the known part
    of RePaint's algorithm 1 (Lugmayr et al. 2022, line 5): x_{t-1} is drawn anew, whatever x_t was,
    and at t = 0 is the picture to the last bit. A deterministic sampler keeps the noise that the
    known pixels of x_T had instead, and DDIM with η = 1 draws from q(x_{t-1}|x_t, x_0): each has
    the right q(x_t|x_0). The rest of the picture is drawn by the model from an x_t whose known part
    is right, and learns of it in this way only: an approximation of q(unknown|known) that `repaint`
    brings nearer.

    Wrap last, after guidance and clipping. Start with `noised` of the picture, the unknown pixels
    set to 0.

    Args:
      denoiser: of the whole image.
      known: [B, H, W, C] in [-1, 1]; what it holds under the mask is not looked at.
      mask: bool, or 0 and 1, [B, H, W, 1]: True where the picture is to be painted anew.
    """
    check_denoiser(denoiser)
    chex.assert_equal_rank([known, mask])

    def know(
        schedule: Schedule, prediction: Prediction, x_t: chex.Array, t: chex.Array
    ) -> Prediction:
        before = jnp.maximum(t - 1, 0)  # of clean data, before t = 0, no log-variance is asked for
        certain = Prediction(
            x_0=known,
            eps=eps_from_x_0(schedule, x_t, t, known),
            mean=extract(jnp.sqrt(jnp.asarray(schedule.alphas_bar_prev)), t, x_t) * known,
            log_variance=jnp.broadcast_to(
                extract(schedule.log_one_minus_alphas_bar, before, x_t), x_t.shape
            ),
        )
        return jax.tree.map(
            lambda unknown, sure: jnp.where(mask, unknown, sure), prediction, certain
        )

    return denoiser.then(know)


class JumpRows(NamedTuple):
    """The rows of `repaint`, [R] each: a step down from row t, then x √(ᾱ_u/ᾱ_{t-1}) + z
    √(1-ᾱ_u/ᾱ_{t-1}), up to u."""

    t: np.ndarray  # int32
    scale: np.ndarray  # of x; 1 where there is no jump
    noise: np.ndarray  # of z; 0 where there is no jump


def repaint(
    chain: Chain,
    times: np.ndarray,
    *,
    resamplings: int = 10,
    jump: int | None = None,
    dtype=np.float32,
) -> Sampler:
    """Ancestral sampling that walks each stretch of the chain several times (Lugmayr et al. 2022,
    algorithm 1).

    Together with `keep_known` it is RePaint: after `jump` steps down, the forward process leads
    `jump` steps up again, and the model sees once more what it painted beside the known pixels:
    their noise is new, what was painted agrees with them better. Without known pixels it is
    ancestral sampling at `resamplings` times the price.

    The defaults are the paper's: 10 walks of each stretch, 10 steps of 250 long, so a 25th of the
    chain here. The j forward steps of a jump are one draw from q(x_{t+j}|x_t), which has the same
    distribution, and belong to the row before: every row asks the denoiser once.

    Args:
      chain: the process.
      times: which of its levels are visited, [N].
      resamplings: r, how often each stretch is walked; 1 is ancestral sampling.
      jump: j, the steps in a stretch, 1..N; None for round(N / 25), at least 1.
      dtype: of the tables; float64 serves tests.

    Returns:
      The sampler; it has N + (r-1) j ⌈(N-j)/j⌉ rows.

    Raises:
      UsageError: resamplings below 1, or jump outside 1..N.
    """
    check_chain(chain)
    steps = len(times)
    jump = max(1, round(steps / JUMPS_PER_CHAIN)) if jump is None else jump
    if resamplings < 1:
        raise UsageError(
            f"resamplings is {resamplings}: choose at least 1, which walks the chain once."
        )
    if not 1 <= jump <= steps:
        raise UsageError(f"jump is {jump}: of a chain of {steps} steps choose 1 to {steps}.")
    t, to = _walk(steps, jump, resamplings)
    # row t is in place t + 1
    signal, _, lambdas = (table[::-1] for table in levels_at(chain, times))
    scale = signal[to + 1] / signal[t]
    noise = np.sqrt(step_variance(lambdas[to + 1], lambdas[t]))
    rows = JumpRows(t.astype(np.int32), scale.astype(dtype), noise.astype(dtype))
    schedule = chain.at(times, dtype=dtype)
    return Sampler(
        schedule,
        rows,
        init=ancestral.AncestralState,
        step=_step,
        evaluations=len(t),
        draws=2 if noise.any() else 1,
    )


def _walk(steps: int, jump: int, resamplings: int) -> tuple[np.ndarray, np.ndarray]:
    """(t, u): the row that each step sets out from, N-1 first, and the level it has come to after
    its jump, if any.

    Jumps set out from the levels 0, j, 2j, ... that have j more above them, r-1 times each.
    """
    left = dict.fromkeys(range(0, steps - jump, jump), resamplings - 1)
    level, t, to = steps - 1, [], []
    while level >= 0:
        t.append(level)
        level -= 1
        if left.get(level, 0):
            left[level] -= 1
            level += jump
        to.append(level)
    return np.array(t), np.array(to)


def _step(
    denoiser: Denoiser, state: ancestral.AncestralState, row: JumpRows, noise: Noise
) -> tuple[ancestral.AncestralState, Prediction]:
    (x,), prediction = ancestral.step(denoiser, state, row.t, noise)

    def up() -> chex.Array:
        return (row.scale * x + row.noise * noise.draw(x, AGAIN)).astype(x.dtype)

    return ancestral.AncestralState(jax.lax.cond(row.noise > 0, up, lambda: x)), prediction


def slerp(pair: chex.Array, weights: chex.Array) -> chex.Array:
    """Points on the arc from pair[0] to pair[1]: sin((1-λ)θ)/sin θ a + sin(λθ)/sin θ b (Song et al.
    2020, eq. 67).

    θ is the angle between the two. Where they have one length every point has it: an x_T between
    two draws of N(0, I) is as long as a draw, which (1-λ) a + λ b is not. Give all images of a path
    the same key where the sampler draws noise, so that they differ in x_T alone.

    Args:
      pair: a and b, float [2, ...].
      weights: λ, [N]; 0 is a and 1 is b, exactly.

    Returns:
      [N, ...]. Vectors that are parallel, or opposite, where no arc is the one, are joined by a
      straight line.
    """
    chex.assert_axis_dimension(pair, 0, 2)
    a, b = (x / jnp.linalg.norm(x) for x in pair.reshape(2, -1))
    # arccos loses its digits at both ends
    angle = 2 * jnp.arctan2(jnp.linalg.norm(a - b), jnp.linalg.norm(a + b))
    straight = jnp.minimum(angle, jnp.pi - angle) < PARALLEL
    angle = jnp.where(straight, 1.0, angle)  # any that divides

    def share(part: chex.Array) -> chex.Array:
        share = jnp.where(straight, part, jnp.sin(part * angle) / jnp.sin(angle))
        return share.reshape(share.shape + (1,) * (pair.ndim - 1))

    return share(1 - weights) * pair[:1] + share(weights) * pair[1:]
