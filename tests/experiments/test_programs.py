"""Compiled programs are kept by their settings."""

import jax.numpy as jnp

from ddpm_jax.experiments.programs import Programs


def test_a_program_is_made_once_for_its_settings_and_the_least_used_are_forgotten():
    programs, made = Programs(), []

    def program(settings):
        def make():
            made.append(settings)
            return jnp.sin

        return programs.get(settings, make)

    program({"steps": 4, "clip": "none"})
    program({"clip": "none", "steps": 4})
    assert made == [{"steps": 4, "clip": "none"}]
    for steps in range(15):
        program(["others", steps])
    program({"steps": 4, "clip": "none"})  # used again, and so kept
    program(["others", 15])
    before = len(made)
    program({"steps": 4, "clip": "none"})
    assert len(made) == before
    program(["others", 0])
    assert len(made) == before + 1
