"""The fields of the config for a mean flow, group `mean_flow`; see `fields`."""

from ddpm_jax.experiments.config_field import POSITIVE, Range, at_least, field, only
from ddpm_jax.experiments.distill_fields import MAX_STEPS
from ddpm_jax.experiments.owners import DIFFUSION

UNREAD = ("loss", "weighting", "timestep_sampling")  # of the group diffusion: it has its own loss
_MEAN = only("mean_flow.evaluations")


class MeanFlow:
    """A network of the mean velocity between two times of a flow, sampled in a step or few."""

    OF = (
        DIFFUSION
        + only("diffusion.process", "flow")
        + only("diffusion.parameterization", "velocity")
        + only("model.name", "unet", "dit")
    )
    evaluations = field(
        0, "network evaluations of a sample; 0: the velocity at one time", at_least(0, MAX_STEPS)
    )
    share = field(
        0.25,
        "of the examples whose two times differ",
        Range(above=0, at_most=1),
        of=_MEAN,
    )
    power = field(
        1.0, "of an error, by which it is divided; 0: by nothing", at_least(0, 2), of=_MEAN
    )
    constant = field(1e-3, "added to it before", POSITIVE, of=_MEAN)
