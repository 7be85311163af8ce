"""The key that every random draw of this package follows from, and the settings of JAX that would change the draws.

What is folded into it is said in `training.randomness` and `samplers.randomness`.
"""

import chex
import jax

from ddpm_jax.errors import UsageError

IMPLEMENTATION = "threefry2x32"  # whatever JAX_DEFAULT_PRNG_IMPL says: seed s means the same images everywhere
_DRAWS_FOLLOW = {  # settings of JAX that change what a key gives, or the arithmetic after it, and what they must be
    "jax_enable_x64": False,
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
}


def base_key(seed: int) -> chex.PRNGKey:
    """A typed key from a seed, 0 to 2**32 - 1."""
    return jax.random.key(seed, impl=IMPLEMENTATION)


def check_settings() -> None:
    """Refuses settings of JAX under which a seed would give other draws than everywhere else.

    Raises:
      UsageError: one of them; the sentence names its environment variable.
    """
    for name, wanted in _DRAWS_FOLLOW.items():
        found = getattr(jax.config, name)
        if found != wanted:
            raise UsageError(
                f"{name.upper()} is {found}, so image i of a seed would not be the one it is elsewhere, and a run "
                f"would not resume on its draws: unset it, or set it to {wanted}."
            )
