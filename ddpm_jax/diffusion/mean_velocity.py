"""The mean velocity of a flow between two times, and the identity by which it is learned.

With z_t = (1-t) x_0 + t ε and dz/dt = v along the flow, u(z_t, r, t) = 1/(t-r) ∫_r^t v(z_τ, τ) dτ,
so z_r = z_t - (t-r) u: one evaluation leads from any time to any earlier one (Geng et al. 2025,
Mean Flows for One-step Generative Modeling).
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.gaussian import over

# (z [B, ...], t [B], r [B]) -> u, of the shape of z
MeanVelocity = Callable[[chex.Array, chex.Array, chex.Array], chex.Array]


def mean_velocity_and_target(
    mean_velocity: MeanVelocity, z: chex.Array, t: chex.Array, r: chex.Array, v: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """Return u and v - (t-r) du/dt, which are equal if u is the mean velocity (their eq. 6).

    The derivative is that along the flow at constant r, v ∂u/∂z + ∂u/∂t, by forward mode. It is the
    derivative of (t-r) u = ∫ v. No gradient passes through the target.

    Args:
      mean_velocity: u.
      z: [B, ...], at time t.
      t: [B].
      r: [B], at most t; where it is t the target is v.
      v: the velocity at z; that of the path through one image, ε - x_0, whose mean it is, will do.
    """
    along_the_flow = v, jnp.ones_like(t), jnp.zeros_like(r)
    u, du_dt = jax.jvp(mean_velocity, (z, t, r), along_the_flow)
    return u, jax.lax.stop_gradient(v - over(t - r, z) * du_dt)


def adaptive_loss(
    found: chex.Array, wanted: chex.Array, *, power: float, constant: float
) -> chex.Array:
    """‖found - wanted‖² / (‖found - wanted‖² + c)^p, [B], the divisor without a gradient.

    Args:
      found: [B, ...].
      wanted: of its shape.
      power: p; 0 is the squared error, 1 nearly the logarithm of it.
      constant: c, positive.

    Source: Geng et al. 2025, section 4.3 and appendix A.
    """
    squared = jnp.sum(jnp.square(found - wanted), axis=tuple(range(1, found.ndim)))
    return squared * (jax.lax.stop_gradient(squared) + constant) ** -power
