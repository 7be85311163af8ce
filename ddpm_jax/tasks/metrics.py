"""What evaluate.py can compute: METRICS, functions (trained, flags) -> `Result`. Flags and files are
`cli.evaluate`."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.cli import settings_flags
from ddpm_jax.data import sources
from ddpm_jax.data.in_memory import in_memory
from ddpm_jax.distributed import hosts, interrupt
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.classification import check_labelled_sets, classification_accuracy_score
from ddpm_jax.evaluation.pixel_frechet import check_pixel_sets, pixel_frechet_distance
from ddpm_jax.evaluation.progressive import HALF_RANGE, rate_distortion
from ddpm_jax.evaluation.tally import Estimate, estimate
from ddpm_jax.experiments.datasets import load_evaluated, load_split
from ddpm_jax.experiments.identity import identity, versions
from ddpm_jax.experiments.loading import TrainedModel
from ddpm_jax.monitoring import results
from ddpm_jax.monitoring.progress import Counter
from ddpm_jax.monitoring.results import format_table
from ddpm_jax.plotting import likelihood_plots as pictures
from ddpm_jax.tasks.evaluated_split import result_path, stem_of
from ddpm_jax.tasks.image_generator import ImageGenerator
from ddpm_jax.tasks.likelihood_bound import bound_of
from ddpm_jax.tasks.likelihood_flow import ode_of
from ddpm_jax.tasks.sampling import make_generator
from ddpm_jax.tasks.sampling_settings import Sampling

TABLE_ROWS = 11  # of the tables that are printed; the JSON has every row


class Result(NamedTuple):
    """What a metric gives back: `values` go into the JSON, `text` to the terminal, `draw(path)`
    makes the PNG."""

    values: dict[str, Any]
    text: str
    suffix: str = ""  # of the files' names, where one checkpoint has many results of this metric
    draw: Callable[[pathlib.Path], None] | None = None


Metric = Callable[[TrainedModel, Any], Result]


def bits_per_dimension(trained: TrainedModel, flags: Any) -> Result:
    """The variational bound with its terms, and the table of bits and errors at every t."""
    of = bound_of(trained, flags)
    summary, t = of.summary, np.flatnonzero(of.summary.visits)
    rmse = HALF_RANGE * np.sqrt(summary.mse[t])
    columns = {
        "t": t,
        "bits": summary.bits[t],
        "bits_standard_error": summary.bits_standard_error[t],
        "x_0_mse": summary.mse[t],
        "x_0_mse_standard_error": summary.mse_standard_error[t],
        "visits": summary.visits[t],
    }
    values = {
        **of.settings,
        "bits_per_dim": summary.total,
        "prior": summary.prior,
        "divergences": summary.divergences,
        "decoder": summary.decoder,
        "per_timestep": columns,
    }
    shown = _spread(len(t))
    table = format_table(
        ["t", "bits/dim", "±", "RMSE of x_0"],
        [(t[i], summary.bits[t[i]], summary.bits_standard_error[t[i]], rmse[i]) for i in shown],
    )
    text = "\n".join(
        [
            f"bits/dim at most   {_number(summary.total)}",
            f"  L_T              {summary.prior:.3g}",
            f"  sum over t >= 1  {_number(summary.divergences)}",
            f"  t = 0, decoder   {_number(summary.decoder)}",
            f"{of.what}; ± one standard error over images",
            *_draws_note(summary.total),
            "",
            table,
        ]
    )
    title = f"Bound: {summary.total.mean:.3f} bits/dim ({of.what})"
    draw = functools.partial(
        pictures.bound_terms,
        t=t,
        bits=columns["bits"],
        standard_error=columns["bits_standard_error"],
        rmse=rmse,
        title=title,
    )
    return Result(values, text, of.suffix, draw)


def _number(estimate: Estimate) -> str:
    return f"{estimate.mean:.4f} ± {estimate.standard_error:.4f}"


def _draws_note(total: Estimate) -> list[str]:
    if np.isnan(total.standard_error_draws):
        return []
    return [
        f"± {total.standard_error_draws:.2g} of the total is due to the draws: another --seed "
        "moves it by so much"
    ]


def bits_per_dimension_ode(trained: TrainedModel, flags: Any) -> Result:
    """The likelihood by the probability flow of images with uniform noise over their bins, and what
    it took."""
    of = ode_of(trained, flags)
    total, per_image, evaluations = (
        estimate(of.bits.draws.astype(np.float64)),
        of.bits.bits_per_dim,
        of.bits.num_evaluations,
    )
    quantiles = dict(
        zip(("5%", "50%", "95%"), np.quantile(per_image, [0.05, 0.5, 0.95]), strict=True)
    )
    values = {
        **of.settings,
        "bits_per_dim": total,
        "quantiles_over_images": quantiles,
        "network_evaluations": {"mean": evaluations.mean(), "max": evaluations.max()},
    }
    text = "\n".join(
        [
            f"bits/dim             {_number(total)}",
            f"  of 9 images in 10  {quantiles['5%']:.4f} to {quantiles['95%']:.4f}",
            f"network evaluations  {evaluations.mean():.1f} for an image and draw, "
            f"{evaluations.max()} at most",
            f"{of.what}, rtol {flags.rtol:g}, atol {flags.atol:g}; ± one standard error over "
            "images",
            *_draws_note(total),
        ]
    )
    title = f"Probability flow: {total.mean:.3f} bits/dim ({of.what})"
    return Result(
        values,
        text,
        of.suffix,
        functools.partial(pictures.bits_per_image, bits=per_image, title=title),
    )


def progressive_coding(trained: TrainedModel, flags: Any) -> Result:
    """Rate against distortion while an image arrives, and the split of the bound into the two."""
    of = bound_of(trained, flags)
    summary, curve = of.summary, rate_distortion(of.summary)
    values = {
        **of.settings,
        "rate": summary.prior + summary.divergences.mean,
        "distortion": summary.decoder.mean,
        "distortion_rmse": float(curve.rmse[-1]),
        "total": summary.total,
        "curve": curve,
    }
    table = format_table(
        ["t", "rate", "RMSE", "±"],
        [
            (curve.t[i], curve.rate[i], curve.rmse[i], curve.rmse_standard_error[i])
            for i in _spread(len(curve.t))
        ],
    )
    text = "\n".join(
        [
            f"rate         {values['rate']:.4f} bits/dim",
            f"distortion   {values['distortion']:.4f} bits/dim, RMSE {curve.rmse[-1]:.3f} on "
            "0..255",
            f"total        {_number(summary.total)} bits/dim",
            of.what,
            "",
            table,
        ]
    )
    draw = functools.partial(
        pictures.rate_distortion, t=curve.t, rate=curve.rate, rmse=curve.rmse, title=of.what
    )
    return Result(values, text, of.suffix, draw)


def _spread(count: int) -> np.ndarray:
    """Up to TABLE_ROWS places of `count`, evenly spaced, the first and the last among them."""
    return np.unique(np.round(np.linspace(0, count - 1, TABLE_ROWS)).astype(int))


def frechet_pixels(trained: TrainedModel, flags: Any) -> Result:
    """The Frechet distance of pixels of samples to the training images, beside that of the held-out
    images.

    With --split train, for data of which nothing is held out, it stands alone.
    """
    made = _prepare("frechet_pixels", trained, flags)
    alone = made.held_out is made.train
    rows, held_out_rows = check_pixel_sets(
        made.train,
        None if alone else made.held_out,
        num_samples=flags.num_samples,
        num_reference=flags.num_reference,
    )
    train = in_memory(made.train, rows).images
    if alone:
        distance = pixel_frechet_distance(made.samples(), train)
        numbers = {**_counts(made, train), "frechet_samples": distance}
        return Result(made.settings | numbers, _lines(numbers), made.suffix)
    held_out = in_memory(made.held_out, held_out_rows).images
    of_samples, of_held_out = (
        pixel_frechet_distance(images, train) for images in (made.samples(), held_out)
    )
    numbers = {
        **_counts(made, train, held_out),
        "frechet_samples": of_samples,
        "frechet_held_out": of_held_out,
        "ratio": of_samples / of_held_out,
    }
    return Result(made.settings | numbers, _lines(numbers), made.suffix)


def classification_accuracy(trained: TrainedModel, flags: Any) -> Result:
    """How well a classifier fitted to samples by class knows the held-out images; beside it one
    fitted to real ones."""
    model = trained.model
    if not model.conditioning.num_classes:
        raise UsageError(
            "classification_accuracy: this model was trained without labels, so its samples have "
            "none."
        )
    made = _prepare("classification_accuracy", trained, flags)
    labels = made.generator.inputs(np.arange(flags.num_samples))["label"]
    sizes, dims = (
        (flags.num_samples, len(made.train), len(made.held_out)),
        int(np.prod(made.train.image_shape)),
    )
    check_labelled_sets(labels, max(sizes), dims, besides=dims * sum(sizes))
    train, held_out = in_memory(made.train), in_memory(made.held_out)
    score = functools.partial(
        classification_accuracy_score, real_images=held_out.images, real_labels=held_out.labels
    )
    numbers = {
        **_counts(made, train.images, held_out.images),
        "fitted_to_samples": score(made.samples(), labels),
        "fitted_to_training_images": score(train.images, train.labels),
    }
    return Result(made.settings | numbers, _lines(numbers), made.suffix)


class _Prepared(NamedTuple):
    """Samples that are yet to be made, and what they are compared with."""

    generator: ImageGenerator
    train: sources.Source
    held_out: sources.Source  # the same one, if --split asks for the images that were trained on
    settings: dict[str, Any]
    suffix: str
    samples: Callable[[], np.ndarray]


def _prepare(name: str, trained: TrainedModel, flags: Any) -> _Prepared:
    """Everything that can be refused, before anything is made."""
    generator = make_generator(trained, settings_flags.read(flags, Sampling))
    data = trained.model.config.data
    names = (data.train_split, flags.split or data.test_split)
    train, other = load_evaluated(trained, names[0], data_dir=flags.data_dir)
    held_out = (
        train if names[0] == names[1] else load_split(data, names[1], data_dir=flags.data_dir)
    )
    settings = {
        **identity(trained),
        "data": [split.fingerprint for split in (train, held_out)],
        "num_samples": flags.num_samples,
        "seed": flags.seed,
        **generator.record,
        **other,
    }
    # absent otherwise: results of before the flag go on
    if flags.num_reference and name == "frechet_pixels":
        settings["num_reference"] = flags.num_reference
    suffix = f"_{stem_of(flags.split)}" if flags.split else ""
    reference = f"_ref{flags.num_reference}" if "num_reference" in settings else ""
    suffix += f"_n{flags.num_samples}{reference}_{generator.name()}_seed{flags.seed}"
    results.check_record(
        result_path(name, trained, flags, f"{suffix}.json"),
        settings | results.machine() | {"versions": versions()},
    )

    def samples() -> np.ndarray:
        indices = hosts.share(flags.num_samples)
        with Counter("sampling", len(indices), unit="image") as counter:
            batches = generator.batches(
                indices,
                seed=flags.seed,
                batch_size=-(-flags.batch_size // jax.process_count()),
                on_rows=counter.within,
            )
            return hosts.gather(
                (_counted(images, counter) for _, images in batches), flags.num_samples
            )

    return _Prepared(generator, train, held_out, settings, suffix, samples)


def _counted(images: np.ndarray, counter: Counter) -> np.ndarray:
    counter.add(len(images))
    interrupt.check()
    return images


def _counts(
    made: _Prepared, train: np.ndarray, held_out: np.ndarray | None = None
) -> dict[str, int]:
    return {
        "num_samples": made.settings["num_samples"],
        **({} if held_out is None else {"num_held_out": len(held_out)}),
        "num_train": len(train),
        "steps": made.generator.record["steps"],
        "evaluations": made.generator.sampler.evaluations,
    }


def _lines(numbers: dict[str, Any]) -> str:
    return "\n".join(
        f"{k:25} {v:.4g}" if isinstance(v, float) else f"{k:25} {v}" for k, v in numbers.items()
    )


METRICS: dict[str, Metric] = {
    "bpd": bits_per_dimension,
    "bpd_ode": bits_per_dimension_ode,
    "classification_accuracy": classification_accuracy,
    "frechet_pixels": frechet_pixels,
    "rate_distortion": progressive_coding,
}
