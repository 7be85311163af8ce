"""`Process`: a chain of noise levels, and the meaning of the output of a network trained on it.

It is made once, by `make_process`, from the names that configs and users give; computations take
the objects.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.chain import Chain, check_chain
from ddpm_jax.diffusion.clipping import CLIPPINGS
from ddpm_jax.diffusion.denoiser import Denoiser, Network
from ddpm_jax.diffusion.gaussian import extract, q_posterior
from ddpm_jax.diffusion.parameterization import (
    EPS,
    MU,
    PARAMETERIZATIONS,
    SCORE,
    SIGMA_DATA,
    Parameterization,
    Prediction,
    edm_parameterization,
    own_step,
)
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.variance import VARIANCES, Variance
from ddpm_jax.errors import UsageError, choose


class Process(NamedTuple):
    """The process a network was trained on, and the meaning of its output."""

    chain: Chain
    parameterization: Parameterization  # of the first C channels
    variance: Variance

    def denoiser(
        self, network: Network, schedule: Schedule | None = None, *, clip: str
    ) -> Denoiser:
        """Return the `Denoiser` of a network.

        Args:
          network: (x_t [B, H, W, C], time float [B]) -> output [B, H, W, C or 2C], any callable.
            The time is `schedule.timesteps[t]`, so that a network trained on T steps gets its own
            times in a respaced chain of N rows. A conditional network takes a third argument:
            `Denoiser.given`.
          schedule: that of the walked chain, `sampler.schedule`; None for the whole chain. Traced
            ones are not checked here: `check_determines_x_0`.
          clip: the treatment of a predicted x_0 outside [-1, 1]: a key of `clipping.CLIPPINGS`.
            "static" is usual for pixels; "none" is for latents, and for a denoiser to be guided,
            since guidance comes before clipping.

        Raises:
          UsageError: an unknown clipping, or a parameterisation that does not determine x_0 at some
            t of this schedule.
        """
        clipping = choose("clipping", clip, CLIPPINGS)
        schedule = self.chain.at() if schedule is None else schedule
        check_determines_x_0(schedule, self.parameterization)
        predicts_mean = self.parameterization is MU
        network_input = self.parameterization.network_input
        return clipping(
            Denoiser(schedule, network, self.interpret, predicts_mean, network_input=network_input)
        )

    def output(
        self, network: Network, schedule: Schedule, x_t: chex.Array, t: chex.Array
    ) -> chex.Array:
        """Evaluate a network at rows t of a schedule, [B, H, W, C or 2C].

        Args:
          network: as of `denoiser`.
          schedule: tables, also of single levels.
          x_t: [B, H, W, C].
          t: int [B].

        Raises:
          UsageError: an output of another shape.
        """
        given = self.parameterization.network_input(schedule, x_t, t)
        output = network(given, jnp.asarray(schedule.timesteps)[t])
        check_output(self.variance, output, x_t)
        return output

    def x_0(
        self, network: Network, schedule: Schedule, x_t: chex.Array, t: chex.Array
    ) -> chex.Array:
        """Return the x_0 that a network predicts, not clipped; the arguments of `output`."""
        value = self.output(network, schedule, x_t, t)[..., : x_t.shape[-1]]
        return self.parameterization.to_x_0(schedule, x_t, t, value)

    def interpret(
        self, schedule: Schedule, output: chex.Array, x_t: chex.Array, t: chex.Array
    ) -> Prediction:
        """Turn a raw network output into a `Prediction`, unclipped.

        Args:
          schedule: tables.
          output: [B, H, W, C], or [B, H, W, 2C] with the variance in the second half of the
            channels where it is learned. `learned`: the channels are the log-variance of the
            trained step, which a respaced chain converts to that of its own. `learned_range`: they
            choose between beta tilde (-1) and beta (+1).
          x_t: [B, H, W, C].
          t: int [B] in 0..T-1.

        Returns:
          The prediction, every field of the shape of x_t.

        Raises:
          UsageError: an output of another shape.
        """
        check_output(self.variance, output, x_t)
        value, variance_output = output[..., : x_t.shape[-1]], output[..., x_t.shape[-1] :]
        x_0 = self.parameterization.to_x_0(schedule, x_t, t, value)
        log_variance = self.variance.log_variance(schedule, x_t, t, variance_output)
        mean = q_posterior(schedule, x_0, x_t, t).mean
        if self.parameterization is MU:
            # The μ that the network predicts is that of the trained step.
            mean = jnp.where(extract(own_step(schedule), t, x_t), value, mean)
        return Prediction(
            x_0=x_0,
            eps=self.parameterization.eps_of(schedule, x_t, t, value, x_0),
            mean=mean,
            log_variance=jnp.broadcast_to(log_variance, x_t.shape),
        )


def make_process(
    chain: Chain,
    parameterization: str = "eps",
    variance: str = "fixed_large",
    *,
    sigma_data: float = SIGMA_DATA,
) -> Process:
    """Make a process from names.

    Args:
      chain: the levels that the network was trained on.
      parameterization: what it predicts: a key of `PARAMETERIZATIONS`.
      variance: a key of `VARIANCES`.
      sigma_data: standard deviation of the data, of the parameterisation `edm` alone.

    Raises:
      UsageError: an unknown name, no chain, eps or score on a chain that ends without signal, or
        mu or a learned variance where there are no trained steps.
    """
    check_chain(chain)
    chosen = choose("parameterization", parameterization, PARAMETERIZATIONS)
    if chosen.name == "edm" and sigma_data != SIGMA_DATA:
        chosen = edm_parameterization(sigma_data)
    process = Process(chain, chosen, choose("variance", variance, VARIANCES))
    if chain.has_levels_between and (chosen is MU or process.variance.learned):
        what = "mu" if chosen is MU else f"variance {variance}"
        raise UsageError(
            f"A process in continuous time has no steps, and so no {what}: predict something else, "
            "with a fixed variance."
        )
    check_determines_x_0(chain.at(), process.parameterization)
    return process


def check_output(variance: Variance, output: chex.Array, x_t: chex.Array) -> None:
    """Refuse a network output of the wrong shape.

    Raises:
      UsageError: see above.
    """
    wanted = (*x_t.shape[:-1], variance.output_channels(x_t.shape[-1]))
    if output.shape != wanted:
        raise UsageError(
            f"The network returned shape {output.shape} for x_t of shape {x_t.shape}: with the "
            f"variance {variance.name} it must return {wanted}."
        )


def check_determines_x_0(schedule: Schedule, parameterization: Parameterization) -> None:
    """Refuse eps or score on a schedule that reaches alphas_bar = 0, with nothing of x_0 in x_t.

    A network of the score, which is given x_t / √ᾱ, is refused where the square of that is no
    number of the tables' type either.

    Raises:
      UsageError: see above; a traced schedule passes unchecked.
    """
    if isinstance(schedule.alphas_bar, jax.core.Tracer):
        return
    last = schedule.alphas_bar[-1]
    too_noisy = parameterization is SCORE and last < np.finfo(last.dtype).tiny
    if too_noisy or (parameterization is EPS and last == 0):
        raise UsageError(
            f"This schedule ends at alphas_bar = 0, where {parameterization.name} does not "
            "determine x_0: predict x_0, v, edm or velocity, or end it before, in continuous time "
            "by sigma_max."
        )
