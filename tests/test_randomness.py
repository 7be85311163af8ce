"""A seed means the same draws whatever the environment says, or the environment is refused."""

import jax
import numpy as np
import pytest

from ddpm_jax import randomness
from ddpm_jax.errors import UsageError

IMAGE = 3


def noise():
    return np.asarray(
        randomness.initial_noise(
            randomness.image_keys(randomness.base_key(7), np.array([IMAGE])), (2, 2, 1)
        )
    )


def test_another_implementation_by_default_does_not_change_the_draws():
    expected = noise()
    with jax.default_prng_impl("rbg"):
        assert jax.random.key(7).dtype != randomness.base_key(7).dtype  # the setting is at work
        np.testing.assert_array_equal(noise(), expected)


def test_a_setting_that_changes_the_draws_is_refused():
    expected = noise()
    randomness.check_settings()
    with jax.enable_x64(True):
        assert not np.array_equal(noise(), expected)
        with pytest.raises(
            UsageError, match=r"JAX_ENABLE_X64 is True, so image i of a seed .* unset"
        ):
            randomness.check_settings()


def test_jaxs_settings_of_threefry_do_not_change_the_draws():
    expected, of_jax = noise(), jax.random.normal(jax.random.key(7), (2, 3))
    jax.config.update("jax_random_seed_offset", 1)
    try:
        assert not np.array_equal(jax.random.normal(jax.random.key(7), (2, 3)), of_jax)
        np.testing.assert_array_equal(noise(), expected)
    finally:
        jax.config.update("jax_random_seed_offset", 0)
    with jax.threefry_partitionable(False):
        assert not np.array_equal(jax.random.normal(jax.random.key(7), (2, 3)), of_jax)
        np.testing.assert_array_equal(noise(), expected)


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "encode", "ema"])
def test_every_command_refuses_it_before_it_reads_anything(command, capsys):
    import importlib

    from ddpm_jax.cli import command as commands

    main = importlib.import_module(f"ddpm_jax.cli.{command}").main
    argv = {
        "train": ["--config", "configs/digits.py"],
        "encode": ["--ckpt", "nowhere", "docs/images"],
    }
    with jax.enable_x64(True):
        assert commands.run(main, argv.get(command, ["--ckpt", "nowhere"])) == 2
    assert "JAX_ENABLE_X64 is True" in capsys.readouterr().err
