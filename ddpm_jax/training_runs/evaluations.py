"""A metric of samples while a run trains, the best checkpoint by it, and early stopping.

The cost of an evaluation is bounded by the config: so many samples in so many steps, of the same
noise each time, made by all devices and processes. The value is in the run's records, as `eval_fid`
for fid; the EMA weights of the best one are in `best`, a directory that every command takes as
--ckpt.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.interrupt import Interrupt, Wish
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.models import DiffusionModel, Model
from ddpm_jax.measuring.evaluation_settings import Features
from ddpm_jax.measuring.running_comparison import RunningComparison
from ddpm_jax.monitoring import records
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.training.state import TrainState
from ddpm_jax.training_runs.best_weights import BEST, BestWeights
from ddpm_jax.training_runs.evaluated_samples import make_draw

# (step, value, number of its settings; None in records of versions that did not write it)
Evaluated = tuple[int, float, float | None]


class Evaluations:
    """The evaluations of a run, those before it was resumed included.

    Values count against one another only if they were measured with the same settings.
    """

    def __init__(
        self,
        model: DiffusionModel,
        comparison: RunningComparison,
        draw: Callable[[Any, Progress], np.ndarray],
        best: BestWeights | None,
        *,
        settings: int,
        past: list[Evaluated],
        interrupt: Interrupt,
        whole: Callable[[Any], Any],
    ):
        """Arguments are what `make_evaluations` makes of a run."""
        self._model, self._comparison, self._draw, self._best = model, comparison, draw, best
        self._settings, self._interrupt, self._whole = settings, interrupt, whole
        self._done = {step for step, _, _ in past}
        self._past = [(step, value) for step, value, of in past if of == settings]

    def owes(self, step: int) -> bool:
        """Return whether the run was stopped before this step was evaluated."""
        due = step > 0 and step % self._model.config.eval.every_steps == 0
        return due and step not in self._done

    @property
    def is_exhausted(self) -> bool:
        """Return whether there was no better value in `eval.patience` evaluations."""
        patience, since = self._model.config.eval.patience, len(self._past) - self._best_index() - 1
        return bool(patience) and bool(self._past) and since >= patience

    def evaluate(
        self, step: int, state: TrainState, writer: MetricWriter, progress: Progress
    ) -> None:
        """Measure a state, record it, keep it if it is the best, and ask to stop if none was.

        Raises:
          FailureError: a sample that is not finite, or a file that cannot be written.
          Stopped: by a signal or a time limit; nothing of the step is kept then.
        """
        if step in self._done:
            return
        config = self._model.config.eval
        weights = hosts.local(self._whole(self._model.weights(state.ema_params, state.frozen)))
        value = self._comparison.value(self._draw(weights, progress))
        self._done.add(step)
        self._past.append((step, value))
        is_best = self._best_index() == len(self._past) - 1
        # Before the record: a run that is killed in between evaluates the step again.
        if is_best and self._best is not None:
            self._best.keep(step, hosts.local(self._whole(state.ema_params)), state.frozen)
        name = record_name(config.metric)
        writer.write(step, {name: value}, unseen={settings_name(name): self._settings})
        writer.flush()
        progress.say(f"step {step}: {config.metric} {value:.4g}{', the best so far' * is_best}")
        if self.is_exhausted:
            at, best = self._past[self._best_index()]
            progress.say(
                f"step {step}: no better {config.metric} in {config.patience} evaluations, so the "
                f"run ends; the best is {best:.4g} of step {at}"
            )
            self._interrupt.request(Wish.CALLBACK)

    def _best_index(self) -> int:
        """Return which of the past values is best, the first of equal ones; -1 if there is none."""
        sign = 1 if self._comparison.is_better_low else -1
        values = [sign * value for _, value in self._past]
        return int(np.argmin(values)) if values else -1


def record_name(metric: str) -> str:
    """Return the name of a metric in the records."""
    return f"eval_{metric}"


def settings_name(name: str) -> str:
    """Return the name of the number in the records that identifies the settings of a metric."""
    return f"{name}_settings"


def make_evaluations(
    model: Model,
    source: Source,
    workdir: pathlib.Path,
    settings: dict[str, Any],
    *,
    interrupt: Interrupt,
    start: int,
    whole: Callable[[Any], Any],
) -> Evaluations | None:
    """Return the evaluations that a config asks for; None for none.

    Args:
      model: the run's.
      source: its training images.
      workdir: its directory.
      settings: of the run, saved with the best weights.
      interrupt: through which the run is ended early.
      start: the step it starts from: evaluations of later ones are made again.
      whole: `Parallelism.whole`.

    Raises:
      UsageError: a model that needs texts or pictures for a sample, a sampler that it does not
        have, or a metric that cannot be computed of such sets.
      FailureError: the records cannot be read.
    """
    if not isinstance(model, DiffusionModel) or not model.config.eval.metric:
        return None
    config = model.config.eval
    if model.conditioning.has_text or model.conditioning.low_res_factor:
        raise UsageError(
            f"eval.metric is {config.metric}, and samples of this model need texts or pictures: "
            "leave it out, and measure the trained model by evaluate."
        )
    chosen = Features(features=config.features, feature_weights=config.feature_weights or None)
    comparison = RunningComparison(
        config.metric,
        source,
        chosen,
        num_samples=config.num_samples,
        num_reference=config.num_reference,
    )
    found = hosts.gather_json(_past(workdir, record_name(config.metric), start))[0]
    made = {"sampler": config.sampler, "steps": config.sample_steps}
    return Evaluations(
        model,
        comparison,
        make_draw(model),
        BestWeights(workdir / BEST, settings) if config.keep_best else None,
        settings=_number({**comparison.settings, **made}),
        past=[(int(step), float(value), of) for step, value, of in found],
        interrupt=interrupt,
        whole=whole,
    )


def _past(workdir: pathlib.Path, name: str, start: int) -> list[Evaluated]:
    """Return the evaluations in the records up to a step."""
    written = records.read(workdir) if hosts.is_primary() else []
    return [
        (one["step"], one[name], one.get(settings_name(name)))
        for one in written
        if name in one and one["step"] <= start
    ]


def _number(settings: dict[str, Any]) -> int:
    """Return a whole number below 2^48, exact in the records, that differs for other settings."""
    return int(hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12], 16)
