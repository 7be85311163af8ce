"""Sampling from a picture instead of noise, or keeping part of one: SDEdit, RePaint, slerp.

Image-to-image: `start_from` shortens the times, `noised` gives x_T, and any sampler walks from
there. Inpainting: `keep_known` makes a denoiser with known pixels, for any sampler; `repaint` is
the sampler that goes back and forth so that the painted part agrees with them. Interpolation
between two seeds: `slerp`. From a picture to its x_T and back is in `inversion`; pictures are not
read here.

A mask is True, white in an image file, where the picture is to be repainted.
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
from ddpm_jax.samplers import ancestral
from ddpm_jax.samplers.linear import levels_at
from ddpm_jax.samplers.loop import Noise, Sampler

JUMPS_PER_CHAIN = 25  # Lugmayr et al. 2022, section 5: jumps of 10 in 250 steps
AGAIN = 1  # the stream of a row's second noise, that of its jump
PARALLEL = 1e-4  # radians: below it an arc and its chord differ by less than float32 resolves


def start_from(times: np.ndarray, strength: float, *, truncated: bool = False) -> np.ndarray:
    """Return the lowest round(strength N) of N times, at least one: SDEdit (Meng et al. 2022).

    Build the sampler on the times returned, so that a multistep method starts without history at
    the first of them.

    Args:
      times: [N], increasing: `spacing.space`.
      strength: the share of the steps, in (0, 1]; 1 is every step.
      truncated: count as diffusers does: int(strength N), of the product in floating point, and no
        step is an error.

    Raises:
      UsageError: strength outside (0, 1], or no step where that is an error.
    """
    if not 0 < strength <= 1:
        raise UsageError(
            f"strength is {strength}: choose above 0 (the picture as it is) to 1 (all of the "
            "steps)."
        )
    if not truncated:
        return times[: max(1, round(strength * len(times)))]
    steps = int(strength * len(times))
    if not steps:
        raise UsageError(
            f"strength is {strength}: of {len(times)} steps that is not one: choose more of either."
        )
    return times[:steps]


def noised(schedule: Schedule, x_0: chex.Array, noise: chex.Array) -> chex.Array:
    """Return x_T = √ᾱ x_0 + √(1-ᾱ) ε at the noisiest row of `schedule`.

    Args:
      schedule: that of the times to walk, `chain.at(times)`.
      x_0: float32 [B, H, W, C] in [-1, 1].
      noise: ε, what a sample would start from: `randomness.initial_noise` of the images' keys.

    Returns:
      float32 [B, H, W, C].
    """
    t = jnp.full(x_0.shape[:1], schedule.num_timesteps - 1)
    return q_sample(schedule, x_0, t, noise)


def keep_known(denoiser: Denoiser, known: chex.Array, mask: chex.Array) -> Denoiser:
    """Return a denoiser that is certain of the known pixels, for any sampler, which ends with them.

    They are exact up to rounding.

    There it is the exact denoiser of data that is this one picture: x_0 is the picture, ε the rest
    of x_t. For `ancestral.step` mean and variance are those of q(x_{t-1}|x_0), the known part of
    RePaint's algorithm 1 (Lugmayr et al. 2022, line 5): x_{t-1} is drawn independently of x_t, and
    at t = 0 is the picture to the last bit. A deterministic sampler instead keeps the noise that
    the known pixels of x_T had, and DDIM with η = 1 draws from q(x_{t-1}|x_t, x_0): each has the
    correct q(x_t|x_0). The model draws the rest of the picture from an x_t whose known part is
    correct, and depends on the known part only through x_t: an approximation of q(unknown|known),
    which `repaint` improves.

    Wrap last, after guidance and clipping. Start with `noised` of the picture, the unknown pixels
    set to 0.

    Args:
      denoiser: of the whole image.
      known: [B, H, W, C] in [-1, 1]; its values under the mask are not used.
      mask: bool, or 0 and 1, [B, H, W, 1]: True where the picture is to be repainted.
    """
    check_denoiser(denoiser)
    chex.assert_equal_rank([known, mask])

    def know(
        schedule: Schedule, prediction: Prediction, x_t: chex.Array, t: chex.Array
    ) -> Prediction:
        before = jnp.maximum(t - 1, 0)  # the log-variance of clean data, before t = 0, is not used
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
    """The rows of `repaint`, [R] each: a step down from row t, then a jump up to level u.

    The jump is x √(ᾱ_u/ᾱ_{t-1}) + z √(1-ᾱ_u/ᾱ_{t-1}).
    """

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
    """Ancestral sampling that walks each stretch of the chain several times.

    Lugmayr et al. 2022, algorithm 1.

    Together with `keep_known` it is RePaint: after `jump` steps down, the forward process leads
    `jump` steps up again, and the model repeats them on known pixels with new noise, so that the
    painted part agrees better with them. Without known pixels it is ancestral sampling at
    `resamplings` times the cost.

    The defaults are the paper's: 10 walks of each stretch, 10 steps of 250 long, so a 25th of the
    chain here. The j forward steps of a jump are one draw from q(x_{t+j}|x_t), which has the same
    distribution, and belong to the row before: every row evaluates the denoiser once.

    Args:
      chain: the process.
      times: the levels to visit, [N].
      resamplings: r, the number of walks of each stretch; 1 is ancestral sampling.
      jump: j, the steps in a stretch, 1..N; None for round(N / 25), at least 1.
      dtype: of the tables; float64 serves tests.

    Returns:
      The sampler, of N + (r-1) j ⌈(N-j)/j⌉ rows.

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
    signal, _, lambdas = (table[::-1] for table in levels_at(chain, times)[:3])
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
    """Return (t, u): the row where each step starts, N-1 first, and the level after any jump.

    Jumps start at the levels 0, j, 2j, ... with at least j more above them, r-1 times each.
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
    """Points on the arc from pair[0] to pair[1]: sin((1-λ)θ)/sin θ a + sin(λθ)/sin θ b.

    Song et al. 2020, eq. 67.

    θ is the angle between the two. Where they have equal norms, so has every point: an x_T between
    two draws of N(0, I) has the norm of a draw, unlike (1-λ) a + λ b. Give all images of a path the
    same key where the sampler draws noise, so that they differ in x_T alone.

    Args:
      pair: a and b, float [2, ...].
      weights: λ, [N]; 0 is a and 1 is b, exactly.

    Returns:
      [N, ...]. Vectors that are parallel, or opposite, where the arc is not unique, are joined by a
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
