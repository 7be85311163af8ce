"""The parts that train a model: optimiser, step, and the state before the first step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from ddpm_jax.distributed.compilation import options_to_run_once
from ddpm_jax.distributed.fsdp import PARALLEL
from ddpm_jax.distributed.pmap import Parallelism
from ddpm_jax.errors import UsageError, choose, plural
from ddpm_jax.experiments import perceptual
from ddpm_jax.experiments.few_steps import num_rounds
from ddpm_jax.experiments.first_stage_objectives import make_players
from ddpm_jax.experiments.learning_rates import parse_groups
from ddpm_jax.experiments.models import Model
from ddpm_jax.experiments.objectives import make_objective
from ddpm_jax.experiments.training_params import with_training_params
from ddpm_jax.randomness import base_key, init_key
from ddpm_jax.training.ema import Average
from ddpm_jax.training.initial_weights import Given, Rows, replaced
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.optimizer import make_learning_rate, make_optimizer
from ddpm_jax.training.rate_groups import check_groups, with_groups
from ddpm_jax.training.state import TrainState, create
from ddpm_jax.training.step import StepOptions, make_train_step


class Training(NamedTuple):
    """What training needs besides the model."""

    objective: Objective
    optimizer: optax.GradientTransformation
    train_step: Any  # not yet mapped over devices
    parallelism: Parallelism  # maps it
    # (key, frozen, {path: given parameters}) -> the state before the first step; one object, which
    # JAX traces once for its shapes and to compile it
    create: Callable[..., TrainState]


def build_training(model: Model) -> Training:
    """Build the objective, the optimiser and the step; nothing is computed.

    Raises:
      UsageError: as `build`.
    """
    config, objective = model.config, make_objective(model)
    o = config.optimizer
    learning_rate = make_learning_rate(
        o.learning_rate,
        warmup_steps=o.warmup_steps,
        decay=o.decay,
        num_steps=config.train.num_steps,
        rounds=num_rounds(config),
    )
    optimizer = make_optimizer(
        o.name, learning_rate, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay
    )
    groups = parse_groups(o.groups)
    if groups:
        check_groups(groups, model.params_shapes())
    optimizer = make_players(config, with_groups(optimizer, groups))
    options = StepOptions(
        ema=Average(
            config.ema.decay, config.ema.warmup, config.ema.rampup_ratio, config.ema.sigma_rel
        ),
        averages=configured_averages(config),
        # each player's optimiser clips its own
        clip_norm=0.0 if config.sharp.adversarial_weight else o.clip_norm,
        clip_scope=o.clip_scope,
        accumulate_steps=o.accumulate_steps,
        skip_nonfinite=config.train.skip_nonfinite,
    )
    parallelism = choose("value of parallel", config.parallel, PARALLEL)
    train_step = make_train_step(
        objective, optimizer, learning_rate, options, parallelism.collectives
    )
    create_state = functools.partial(_create, model, objective, optimizer)
    return Training(objective, optimizer, train_step, parallelism, create_state)


def configured_averages(config: ConfigDict) -> dict[str, Average]:
    """Return the averages kept in addition to the one to sample from, by name."""
    by_decay = {f"decay_{decay}": Average(decay=decay) for decay in config.ema.decays}
    return by_decay | {
        name: Average(sigma_rel=width) for name, width in snapshot_names(config).items()
    }


def snapshot_names(config: ConfigDict) -> dict[str, float]:
    """Return {name: relative width} of the averages saved in snapshots."""
    return {f"sigma_rel_{width}": width for width in config.ema.sigma_rels}


def init_state(
    model: Model,
    training: Training,
    frozen: Any = None,
    given: Given | None = None,
    average: Given | None = None,
) -> TrainState:
    """Draw the state before the first update from the config's seed, each leaf on its devices.

    A model over latents needs `frozen`, whose buffers the state shares; that of a first stage is
    read here. Parameters in `given` replace those drawn, in the averages too, unless `average` has
    other ones for these.

    Raises:
      UsageError: it cannot be read.
    """
    places = training.parallelism.shardings(_state_shapes(model, training))
    init = jax.jit(
        training.create,
        out_shardings=places,
        compiler_options=options_to_run_once(),
    )
    frozen = perceptual.read_frozen(model.config) if frozen is None else frozen
    if jax.tree.leaves(frozen):
        # From the host: an array on a device of this process cannot be copied to those of others.
        frozen = jax.device_put(jax.tree.map(np.asarray, frozen), places.frozen)
    where = flatten_dict(places.params)

    def placed(path: tuple[str, ...], leaf: Any) -> Any:
        if isinstance(leaf, Rows):
            return leaf._replace(values=placed(path, leaf.values))
        return jax.device_put(np.asarray(leaf), where[path])

    def all_placed(given: Given) -> Given:
        return {path: placed(path, leaf) for path, leaf in given.items()}

    # Without averages of their own the arguments are those of the trace for the shapes.
    others = [] if average is None else [all_placed(average)]
    key = init_key(base_key(model.config.seed))
    return init(key, frozen, all_placed(given or {}), *others)


def state_shapes(model: Model, training: Training) -> TrainState:
    """Return the state's tree as shapes, dtypes and shardings, to restore a checkpoint into."""
    shapes = _state_shapes(model, training)
    places = training.parallelism.shardings(shapes)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )


def _state_shapes(model: Model, training: Training) -> TrainState:
    return jax.eval_shape(training.create, base_key(0), model.frozen_shapes(), {})


def _create(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    frozen: Any,
    given: Given,
    average: Given | None = None,
) -> TrainState:
    averages, drawn = configured_averages(model.config), model.init_params(key)
    params = with_training_params(model.config, replaced(drawn, given), key)
    if average is not None:
        average = with_training_params(model.config, replaced(drawn, average), key)
    return create(params, optimizer, objective, averages, frozen, average)


def check_batch(config: ConfigDict) -> None:
    """Refuse a batch size that the devices cannot share evenly.

    Raises:
      UsageError: train.batch_size is no multiple of devices x accumulate_steps.
    """
    devices, parts, batch_size = (
        jax.device_count(),
        config.optimizer.accumulate_steps,
        config.train.batch_size,
    )
    if batch_size % (devices * parts):
        fit = max(1, batch_size // (devices * parts)) * devices * parts
        raise UsageError(
            f"train.batch_size is {batch_size}, which {plural(devices, 'device')} "
            f"in {plural(parts, 'part')} (optimizer.accumulate_steps) cannot share "
            f"evenly: use {fit}, say."
        )
