"""DDIM and its other names: Euler's method, and Euler's method with fresh noise.

In x̄ = x_t / √ᾱ_t and σ the probability flow is dx̄/dσ = ε(x_t, t) (Song et al. 2020, eq. 14), and
Euler's step on it is DDIM with η = 0: exact if ε were constant over the step. First order.
"""

import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.linear import Levels, Weights, flow_weights, linear_sampler, visited
from ddpm_jax.samplers.loop import Sampler


def ddim(chain: Chain, times: np.ndarray, *, eta: float = 0.0, dtype=np.float32) -> Sampler:
    """x_{i+1} = √ᾱ' x_0 + √(1-ᾱ'-s²) ε + s z, s = η √((1-ᾱ')/(1-ᾱ)) √(1-ᾱ/ᾱ').

    Song et al. 2020, eq. 12 and 16.

    ᾱ' is that of the next level. The denoiser decides what x_0 and ε are where x_0 is clipped, and
    implementations of DDIM differ in that alone: the paper does not clip; OpenAI's code clips and
    derives ε from the clipped x_0 (`clipping.static`, our default); diffusers clips and keeps the
    predicted ε.

    Args:
      chain: the process.
      times: the levels to visit, [N]: `spacing.space`.
      eta: 0 is deterministic; 1 is ancestral sampling with the variance β̃ (fixed_small). In [0,
        1].
      dtype: of the tables; float64 serves tests.

    Raises:
      UsageError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise UsageError(f"eta is {eta}: choose 0 (deterministic) to 1 (ancestral).")
    schedule, levels = visited(chain, times, dtype)
    kept, fresh = _split_noise(levels, eta)
    weights = Weights(
        x=np.zeros(len(kept)), x_0=levels.after.signal[:, None], eps=kept[:, None], z=fresh
    )
    return linear_sampler(schedule, weights)


def euler(chain: Chain, times: np.ndarray, *, dtype=np.float32) -> Sampler:
    """x̄_{i+1} = x̄_i + (σ' - σ) ε: DDIM with η = 0, under its name among ODE samplers."""
    return ddim(chain, times, eta=0.0, dtype=dtype)


def euler_ancestral(
    chain: Chain, times: np.ndarray, *, eta: float = 1.0, dtype=np.float32
) -> Sampler:
    """Euler's step down to σ_down, then fresh noise of scale σ_up: σ_up² + σ_down² = σ'².

    k-diffusion's sampler: σ_up = min(σ', η σ'/σ √(σ² - σ'²)). For η = 1 it equals DDIM with η = 1,
    and so ancestral sampling.

    Args:
      chain: the process.
      times: the levels to visit, [N].
      eta: how much of the noise is fresh; 0 is `euler`. Not negative.
      dtype: of the tables.

    Raises:
      UsageError: a negative eta.
    """
    if not 0 <= eta < np.inf:
        raise UsageError(
            f"eta is {eta}: choose 0 (deterministic), 1 (ancestral) or another number that is not "
            "negative."
        )
    schedule, levels = visited(chain, times, dtype)
    kept, fresh = _split_noise(levels, eta)
    # In x̄ both parts are divided by √ᾱ' of the next level.
    down, up = (of / levels.signal[1:] for of in (kept, fresh))
    return linear_sampler(
        schedule, flow_weights(levels.signal, eps=(down - levels.sigma[:-1])[:, None], z=up)
    )


def _split_noise(levels: Levels, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the noise of the next level that is kept and the noise that is fresh, [N] each.

    They are √(1-ᾱ'-s²) and s = min(√(1-ᾱ'), η √β̃).

    β̃ = (1-ᾱ')/(1-ᾱ) (1-ᾱ/ᾱ') (Ho et al. 2020, eq. 7) is (1-ᾱ') (1 - e^(-2h)); in x̄ and σ it is
    σ'²/σ² (σ²-σ'²). So neither part is a difference of nearly equal numbers.
    """
    # The fresh share of the variance is η² (1 - e^(-2h)), capped at all of it where η is above 1.
    lost = -np.expm1(-2 * levels.steps)
    kept = np.maximum(np.exp(-2 * levels.steps) + (1 - eta**2) * lost, 0)
    noise = levels.after.noise
    return noise * np.sqrt(kept), noise * np.minimum(eta * np.sqrt(lost), 1)
