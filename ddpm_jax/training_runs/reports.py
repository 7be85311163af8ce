"""Messages of training on standard error, and the loss curve it draws."""

import pathlib
import sys

import jax
import numpy as np

from ddpm_jax.data.dataset_info import describe
from ddpm_jax.data.sources import Source
from ddpm_jax.diffusion.likelihood import prior_warning
from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.pmap import bytes_per_device
from ddpm_jax.errors import plural, say, visible
from ddpm_jax.experiments.models import DiffusionModel, Model
from ddpm_jax.experiments.run_settings import frozen_first_stage
from ddpm_jax.files import reporting
from ddpm_jax.monitoring import records
from ddpm_jax.plotting.curves import columns, loss_curve
from ddpm_jax.training.objective import QUARTILES
from ddpm_jax.training.state import TrainState

CURVE = "loss.png"


def warn(sentence: str) -> None:
    """Print a warning, once for all processes; the sentence comes without its full stop."""
    if hosts.is_primary():
        say(f"warning: {visible(sentence)}.", file=sys.stderr)


def announce(
    model: Model, workdir: pathlib.Path, source: Source, state: TrainState, *, origin: str
) -> None:
    """Print what is trained, from where and on what data.

    `origin` names the weights that are not drawn.
    """
    if isinstance(model, DiffusionModel) and (sentence := prior_warning(model.schedule)):
        warn(sentence)
    start, length = int(state.step), model.config.train.num_steps
    begin = (
        f"resuming at step {start} of {length}"
        if start
        else f"starting the first of {length} steps"
    )
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(state.params))
    say(
        f"{workdir}: {begin}{f' from {origin}' if origin else ''}; {len(source):,} images of "
        f"{_size(model.image_shape)}{_latents(model, state)}, {count:,} parameters, {_devices()}, "
        f"{bytes_per_device(state) / 1e6:,.1f} MB of state on each",
        file=sys.stderr,
    )
    say(f"data {model.config.data.name}: {describe(source)}", file=sys.stderr)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _devices() -> str:
    count, kind = jax.device_count(), jax.devices()[0].device_kind
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{plural(count, f'{kind} device')}{processes}"


def _latents(model: Model, state: TrainState) -> str:
    if frozen_first_stage(model) is None:
        return ""
    scale = float(np.asarray(model.weights((), state.frozen).frozen.scale))
    return f" as latents of {_size(model.shape)} times {scale:.4g}"


def draw_loss(workdir: pathlib.Path) -> pathlib.Path:
    """Draw the loss curve into the run's directory; return its path."""
    written = records.read(workdir)
    steps, losses = columns(written, ["loss"])
    _, quartiles = columns(written, [f"loss_q{q}" for q in range(1, QUARTILES + 1)])
    path = workdir / CURVE
    with reporting(path):
        shown = quartiles if len(quartiles) else None
        loss_curve(path, steps, losses[:, 0], shown, title=str(workdir))
    return path
