"""How the noise of a batch is paired with its images in training: independently, or by transport.

A flow that is trained on pairs (x_0, ε) leads from noise to data along E[ε - x_0 | x_τ]. With
independent pairs that is the probability flow of the diffusion, and x_τ gives the score too. Pairs
of least total squared distance cross each other less, so the paths are straighter and fewer steps
follow them; ε and x_0 each keep their distribution (Tong et al. 2023, "OT-CFM"; Pooladian et al.
2023, "BatchOT"). What is predicted of ε is then no score: only samplers without noise follow it.
"""

import chex
import jax.numpy as jnp
import optax

from ddpm_jax.errors import choose

COUPLINGS = {
    "independent": "each image with noise of its own",
    "ot": "the pairs of a batch with the least sum of squared distances",
}


def couple(coupling: str, x_0: chex.Array, eps: chex.Array) -> chex.Array:
    """Return the noise of a batch in the order in which it is paired with the images.

    Args:
      coupling: a key of `COUPLINGS`.
      x_0: [B, ...]; the images keep their order, and so their labels.
      eps: noise, of the same shape.

    Raises:
      UsageError: an unknown coupling.
    """
    choose("coupling", coupling, COUPLINGS)
    return eps if coupling == "independent" else eps[transport(x_0, eps)]


def transport(x_0: chex.Array, eps: chex.Array) -> chex.Array:
    """Return the permutation p, int [B], that minimises Σ_i ‖x_0[i] - ε[p(i)]‖².

    The squares of x_0 and of ε add up to the same for every p, so the cost of a pair is -x_0 · ε.
    Solved exactly by the Hungarian method, whose time grows as B³.
    """
    flat = x_0.reshape(len(x_0), -1), eps.reshape(len(eps), -1)
    cost = -jnp.einsum("id,jd->ij", *flat, precision="highest")
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros_like(columns).at[rows].set(columns)
