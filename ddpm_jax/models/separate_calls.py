"""What networks are compiled with: see `ddpm_jax.separate_calls`."""

from ddpm_jax.separate_calls import compiled_apart as compiled_apart
