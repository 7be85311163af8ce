"""The metrics bpd, bpd_ode and rate_distortion: likelihoods of a model as tables and pictures."""

import functools
import pathlib
from typing import Any

import numpy as np

from ddpm_jax.evaluation.progressive import HALF_RANGE, rate_distortion
from ddpm_jax.evaluation.tally import Summary, estimate
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, FlowLikelihood, VariationalBound
from ddpm_jax.measuring.likelihood_bound import measure_bound
from ddpm_jax.measuring.measurement import Measurement, note_on_draws, with_error
from ddpm_jax.monitoring.results import format_table
from ddpm_jax.plotting import likelihood_plots

TABLE_ROWS = 11  # of the tables that are printed; the JSON has every row


def bits_per_dimension(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: VariationalBound,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Measure the variational bound, its terms, and bits and errors at every t."""
    found = measure_bound(trained, images, settings, directory)
    summary, columns = found.summary, _per_timestep(found.summary)
    rmse = HALF_RANGE * np.sqrt(columns["x_0_mse"])
    values = {
        **found.record,
        "bits_per_dim": summary.total,
        "prior": summary.prior,
        "divergences": summary.divergences,
        "decoder": summary.decoder,
        "per_timestep": columns,
    }
    shown = {
        "t": columns["t"],
        "bits/dim": columns["bits"],
        "±": columns["bits_standard_error"],
        "RMSE of x_0": rmse,
    }
    text = [
        f"bits/dim at most   {with_error(summary.total)}",
        f"  L_T              {summary.prior:.3g}",
        f"  sum over t >= 1  {with_error(summary.divergences)}",
        f"  t = 0, decoder   {with_error(summary.decoder)}",
        f"{found.description}; ± one standard error over images",
        *note_on_draws(summary.total),
        "",
        _table(shown),
    ]
    draw = functools.partial(
        likelihood_plots.bound_terms,
        t=columns["t"],
        bits=columns["bits"],
        standard_error=columns["bits_standard_error"],
        rmse=rmse,
        title=f"Bound: {summary.total.mean:.3f} bits/dim ({found.description})",
    )
    return Measurement(values, "\n".join(text), found.suffix, draw)


def _per_timestep(summary: Summary) -> dict[str, np.ndarray]:
    """Return the columns of the record's table, a row for each t that was visited."""
    t = np.flatnonzero(summary.visits)
    return {
        "t": t,
        "bits": summary.bits[t],
        "bits_standard_error": summary.bits_standard_error[t],
        "x_0_mse": summary.mse[t],
        "x_0_mse_standard_error": summary.mse_standard_error[t],
        "visits": summary.visits[t],
    }


def bits_per_dimension_ode(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: FlowLikelihood,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Measure the likelihood of dequantised images by the probability flow, and its cost."""
    from ddpm_jax.measuring.likelihood_flow import measure_flow  # whose solver, diffrax, is large

    found = measure_flow(trained, images, settings, directory)
    per_image, evaluations = found.bits.bits_per_dim, found.bits.num_evaluations
    total = estimate(found.bits.draws.astype(np.float64))
    quantiles = dict(
        zip(("5%", "50%", "95%"), np.quantile(per_image, [0.05, 0.5, 0.95]), strict=True)
    )
    values = {
        **found.record,
        "bits_per_dim": total,
        "quantiles_over_images": quantiles,
        "network_evaluations": {"mean": evaluations.mean(), "max": evaluations.max()},
    }
    text = [
        f"bits/dim             {with_error(total)}",
        f"  of 9 images in 10  {quantiles['5%']:.4f} to {quantiles['95%']:.4f}",
        f"network evaluations  {evaluations.mean():.1f} for an image and draw, "
        f"{evaluations.max()} at most",
        f"{found.description}, rtol {settings.rtol:g}, atol {settings.atol:g}; ± one standard "
        "error over images",
        *note_on_draws(total),
    ]
    title = f"Probability flow: {total.mean:.3f} bits/dim ({found.description})"
    draw = functools.partial(likelihood_plots.bits_per_image, bits=per_image, title=title)
    return Measurement(values, "\n".join(text), found.suffix, draw)


def progressive_coding(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: VariationalBound,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Measure rate against distortion while an image arrives, whose sum is the bound."""
    found = measure_bound(trained, images, settings, directory)
    summary, curve = found.summary, rate_distortion(found.summary)
    values: dict[str, Any] = {
        **found.record,
        "rate": summary.prior + summary.divergences.mean,
        "distortion": summary.decoder.mean,
        "distortion_rmse": float(curve.rmse[-1]),
        "total": summary.total,
        "curve": curve,
    }
    shown = {
        "t": curve.t,
        "rate": curve.rate,
        "RMSE": curve.rmse,
        "±": curve.rmse_standard_error,
    }
    text = [
        f"rate         {values['rate']:.4f} bits/dim",
        f"distortion   {values['distortion']:.4f} bits/dim, RMSE {curve.rmse[-1]:.3f} on 0..255",
        f"total        {with_error(summary.total)} bits/dim",
        found.description,
        "",
        _table(shown),
    ]
    draw = functools.partial(
        likelihood_plots.rate_distortion,
        t=curve.t,
        rate=curve.rate,
        rmse=curve.rmse,
        title=found.description,
    )
    return Measurement(values, "\n".join(text), found.suffix, draw)


def _table(columns: dict[str, np.ndarray]) -> str:
    """Return up to `TABLE_ROWS` rows, evenly spaced, with the first and the last."""
    count = len(next(iter(columns.values())))
    rows = np.unique(np.round(np.linspace(0, count - 1, TABLE_ROWS)).astype(int))
    return format_table(list(columns), [[column[i] for column in columns.values()] for i in rows])
