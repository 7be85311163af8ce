"""The fields of the config for models of few steps, group `distill`; see `fields`."""

from ddpm_jax.experiments.config_field import (
    POSITIVE,
    Range,
    at_least,
    choices,
    field,
    only,
    up_to,
)
from ddpm_jax.experiments.owners import DIFFUSION, FINE_TUNED

MAX_STEPS, MAX_ROUNDS = 64, 12
METHODS = {  # of distillation, and the name of its models in messages
    "consistency": "a model of consistency tuning",
    "progressive": "a model of progressive distillation",
}
# of the group diffusion, which no distillation reads: its loss and its levels are its own
UNREAD = (
    "loss",
    "weighting",
    "timestep_sampling",
    "levels",
    "level_mean",
    "level_std",
    "mode_scale",
)
_DISTILLED = only("distill.evaluations")
_CONSISTENCY = _DISTILLED + only("distill.method", "consistency")
_PROGRESSIVE = _DISTILLED + only("distill.method", "progressive")


class Distill:
    """The weights of `init_from` become those of a model of few steps."""

    OF = DIFFUSION + FINE_TUNED
    evaluations = field(
        0, "network evaluations of a sample; 0: as many as one likes", at_least(0, MAX_STEPS)
    )
    method = field("consistency", "of distillation", choices(METHODS), of=_DISTILLED)
    rounds = field(
        5,
        "equal parts of the run; each halves the number of steps, down to evaluations",
        up_to(MAX_ROUNDS),
        of=_PROGRESSIVE,
    )
    # Of the defaults here -0.5, 2 and 5 stages were best on the digits; Geng et al. 2024 have -1.1,
    # 2 and 8 for CIFAR-10, with a hundred times as many images.
    stages = field(
        5, "equal parts of the run; in each the levels are nearer", up_to(32), of=_CONSISTENCY
    )
    level_mean = field(-0.5, "of ln sigma", Range(at_least=-50, at_most=50), of=_CONSISTENCY)
    level_std = field(2.0, "its standard deviation", POSITIVE, of=_CONSISTENCY)
    huber = field(
        0.0, "c of the pseudo-Huber distance; 0: the distance itself", at_least(0), of=_CONSISTENCY
    )
    sigma_max = field(80.0, "where samples begin, if the process has it", POSITIVE, of=_DISTILLED)
    sigma_last = field(0.8, "of the last evaluation but the first", POSITIVE, of=_CONSISTENCY)
