"""The look-up of names and its sentence."""

import pytest

from ddpm_jax.errors import UsageError, choose, suggest

TABLE = {"linear": 1, "cosine": 2}


def test_a_valid_name_gives_its_entry():
    assert choose("beta schedule", "cosine", TABLE) == 2


def test_an_unknown_name_is_named_with_all_valid_ones_and_the_nearest():
    with pytest.raises(UsageError) as caught:
        choose("beta schedule", "linar", TABLE)
    assert str(caught.value) == "Unknown beta schedule 'linar': choose one of cosine, linear. Did you mean 'linear'?"


def test_no_name_is_suggested_where_none_is_near():
    assert suggest("zzz", TABLE) == ""
    with pytest.raises(UsageError, match=r"choose one of cosine, linear\.$"):
        choose("beta schedule", "", TABLE)
