"""Learning rates of groups of parameters."""

import jax
import numpy as np
import optax
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.learning_rates import parse_groups
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.rate_groups import check_groups, factor_of, with_groups

PARAMS = {
    "conv_in": {"kernel": np.float32([1.0, -2.0]), "bias": np.float32([0.5])},
    "down_0": {"conv": {"kernel": np.float32([3.0])}},
    "down_1": {"conv": {"kernel": np.float32([4.0])}},
    "class_embedding": {"embedding": np.float32([[1.0, 2.0]])},
}
GROUPS = "class_embedding=10, */bias=0, down_*=0.5"


def steps(optimizer, params, n):
    """Return the parameters after n steps down the loss sum x^2 / 2, whose gradient is x."""
    state = optimizer.init(params)
    for _ in range(n):
        updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_two_steps_of_sgd_are_those_by_hand():
    """x <- x - rate x, twice: x (1 - rate)^2, with the rate of the parameter."""
    rate = 0.05
    after = steps(with_groups(optax.sgd(rate), parse_groups(GROUPS)), PARAMS, 2)
    left = {
        ("conv_in", "kernel"): 0.95**2,
        ("conv_in", "bias"): 1.0,
        ("down_0", "conv", "kernel"): 0.975**2,
        ("down_1", "conv", "kernel"): 0.975**2,
        ("class_embedding", "embedding"): 0.5**2,
    }
    for path, factor in left.items():
        before, found = PARAMS, after
        for name in path:
            before, found = before[name], found[name]
        np.testing.assert_allclose(found, factor * before, rtol=1e-6)


@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adamw", 0.1)])
def test_a_factor_of_all_is_another_learning_rate(name, decay):
    def after(rate, groups):
        optimizer = make_optimizer(name, optax.constant_schedule(rate), weight_decay=decay)
        return steps(with_groups(optimizer, parse_groups(groups)), PARAMS, 3)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        after(0.01, "*=3"),
        after(0.03, ""),
    )


def test_without_groups_the_optimiser_is_the_very_one():
    optimizer = optax.sgd(0.1)
    assert with_groups(optimizer, parse_groups("")) is optimizer


def test_the_first_pattern_that_fits_decides():
    groups = parse_groups("down_0/conv=3,down_*=2,*=0.5")
    paths = ["down_0/conv/kernel", "down_0/norm/scale", "down_1/conv/kernel", "conv_in/bias"]
    assert [factor_of(path, groups) for path in paths] == [3, 2, 2, 0.5]
    assert factor_of("down_0/convolution/kernel", groups) == 2
    assert factor_of("conv_in/bias", groups[:1]) == 1


@pytest.mark.parametrize("text", ["a", "a=", "=2", "a=-1", "a=x", "a=nan", "a=1e9", "a=1;b=2"])
def test_what_is_no_pair_is_refused(text):
    with pytest.raises(UsageError, match=r"optimizer\.groups has .*: give PATTERN=FACTOR"):
        parse_groups(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("up_*=2", r"'up_\*', which is the path of no parameter: they begin with class_embedding"),
        ("down_*=2,down_0=3", "'down_0' after patterns that fit all its parameters"),
    ],
)
def test_a_pattern_that_decides_nothing_is_refused(text, says):
    with pytest.raises(UsageError, match=says):
        check_groups(parse_groups(text), PARAMS)
    check_groups(parse_groups(GROUPS), PARAMS)
