"""Config -> the parts it names. Everything that can be wrong with a config is found here, before
anything compiles."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from ddpm_jax.data.transforms import to_model_range, to_uint8
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.flow import ContinuousSchedule, EpsFunction, make_continuous, network_eps
from ddpm_jax.diffusion.losses import check_loss
from ddpm_jax.diffusion.parameterization import (
    Denoiser,
    Prediction,
    check_parameterization,
    make_denoiser,
)
from ddpm_jax.diffusion.schedules import Schedule, make_betas, spaced_timesteps
from ddpm_jax.distributed.fsdp import PARALLEL
from ddpm_jax.distributed.pmap import Parallelism, in_parts
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.experiments import first_stages, perceptual
from ddpm_jax.experiments.config_checks import check_ranges
from ddpm_jax.experiments.networks import make_classifier, make_network
from ddpm_jax.generation import generating
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.classifier import Classifier
from ddpm_jax.models.condition import Condition, null_condition
from ddpm_jax.models.dit import DiT
from ddpm_jax.models.unet import UNet
from ddpm_jax.randomness import base_key, init_key
from ddpm_jax.samplers.guidance import LogProb, class_log_prob
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.training.classifier_objective import classifier_objective
from ddpm_jax.training.conditioning import Conditioning
from ddpm_jax.training.ema import Average
from ddpm_jax.training.initial_weights import Given, replaced
from ddpm_jax.training.latent_objective import over_latents
from ddpm_jax.training.objective import Objective, diffusion_objective
from ddpm_jax.training.optimizer import make_learning_rate, make_optimizer
from ddpm_jax.training.state import TrainState, create
from ddpm_jax.training.step import StepOptions, make_train_step
from ddpm_jax.variational.first_stage import FirstStage
from ddpm_jax.variational.latent_space import Frozen, LatentSpace

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
RESCALED_TIME = 1000.0  # what t = T would be called under rescale_timesteps (Improved DDPM's code)

# latents that a device decodes at a time, for the memory that the features at full size take
DECODED = 8

ConditionalDenoiser = Callable[[jax.Array, jax.Array, Condition | None], Prediction]


class Weights(NamedTuple):
    """What images of a model over latents are made with; a pytree. Of a model over pixels they are
    its parameters."""

    params: Any
    frozen: Frozen


class First(NamedTuple):
    """The trained first stage whose latents a model is of."""

    experiment: "Experiment"
    sha256: str  # of its parameters: `results.weights_digest`


class Experiment(NamedTuple):
    """What sampling and evaluation need of a config."""

    config: ConfigDict
    # by config.objective and model.name; the first two denoise
    model: UNet | DiT | Classifier | Autoencoder
    chain: Chain
    schedule: Schedule  # all T steps of the chain
    image_shape: tuple[int, int, int]
    first: First | None = None  # None: the model is one of pixels, or a first stage itself

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of what diffuses: of an image, or of its latents."""
        return self.image_shape if self.first is None else self.latents.shape

    @property
    def latents(self) -> LatentSpace:
        """Where the latents of `first` lie, which must be there."""
        return first_stages.make_latent_space(
            self.first.experiment.first_stage, self.first.experiment.model, self.image_shape
        )

    def weights(self, params: Any, state: TrainState) -> Any:
        """What images are made with in training: `params`, those trained or averaged, and what they
        need beside."""
        return params if self.first is None else Weights(params, state.objective_state.frozen)

    def apply(self, weights: Any, *inputs: Any) -> jax.Array:
        """The network without dropout, of `weights` as `load` and the method above give them."""
        return self.model.apply(
            {"params": weights if self.first is None else weights.params}, *inputs
        )

    def read(self, weights: Any, images: jax.Array) -> jax.Array:
        """Images uint8 [B, H, W, C] as the model knows them, x_0: in [-1, 1], or the means of their
        latents."""
        x = to_model_range(images)
        return x if self.first is None else self.latents.encode(weights.frozen, x)

    def show(self, weights: Any, x: jax.Array, inputs: Any = None) -> jax.Array:
        """The images uint8 [B, H, W, C] that x_0, or x_t, stands for; latents are decoded,
        `DECODED` at a time.

        It does not look at the inputs of a `generating.Generate`.
        """
        if self.first is None:
            return to_uint8(x)
        return in_parts(lambda z: to_uint8(self.latents.decode(weights.frozen, z)), x, size=DECODED)

    def denoiser(
        self, weights: Any, schedule: Schedule, condition: Condition | None = None
    ) -> Denoiser:
        """The model without dropout, x_0 clipped if it is a pixel, on `schedule`: the whole chain
        or a respaced one.

        A conditional model needs the condition, one for each image of the batches that the denoiser
        will be given.
        """
        return self._denoiser(weights, schedule, condition, clip_denoised=self.first is None)

    def conditional_denoiser(self, weights: Any, schedule: Schedule) -> ConditionalDenoiser:
        """(x_t, t, condition) -> `Prediction`, nothing clipped: guidance comes before clipping."""
        return lambda x_t, t, condition: self._denoiser(
            weights, schedule, condition, clip_denoised=False
        )(x_t, t)

    def _denoiser(
        self, weights: Any, schedule: Schedule, condition: Condition | None, *, clip_denoised: bool
    ) -> Denoiser:
        return make_denoiser(
            lambda x_t, time: self.apply(weights, x_t, time, condition),
            schedule,
            parameterization=self.config.diffusion.parameterization,
            variance=self.config.diffusion.variance,
            clip_denoised=clip_denoised,
        )

    @property
    def first_stage(self) -> FirstStage:
        """What the numbers of an `Autoencoder` mean."""
        return first_stages.make_first_stage(self.config, self.model)

    @property
    def conditioning(self) -> Conditioning:
        """What the model is told of an example."""
        return Conditioning(**self.config.condition.to_dict())

    def class_log_prob(self, weights: Any, schedule: Schedule) -> LogProb:
        """log p(y|x_t) by a classifier without dropout, on the chain that it guides or a respaced
        one."""
        return class_log_prob(functools.partial(self.apply, weights), schedule)

    def continuous(self) -> ContinuousSchedule:
        """The chain in real time.

        Raises:
          UsageError: it ends at alphas_bar = 0.
        """
        precise = self.chain.at(dtype=np.float64)
        return make_continuous(precise, time_scale=self.chain.time_scale, dtype=np.float32)

    def eps(
        self, weights: Any, continuous: ContinuousSchedule, condition: Condition | None = None
    ) -> EpsFunction:
        """The model's ε at real t, without dropout, nothing clipped; of a conditional model as in
        `denoiser`."""
        return network_eps(
            lambda x_t, time: self.apply(weights, x_t, time, condition),
            continuous,
            parameterization=self.config.diffusion.parameterization,
        )

    def respaced(self, steps: int) -> Schedule:
        """The chain of `steps` of the T timesteps.

        Raises:
          UsageError: `steps` is not in 1..T.
        """
        return self.chain.at(spaced_timesteps(self.chain.num_timesteps, steps))

    def generator(self, sampler: Sampler, **options: Any) -> generating.Generate:
        """Makes images by `sampler`; options are those of `generating.make_generate`, inputs the
        `Condition`s."""
        return generating.make_generate(
            self.denoiser, sampler, self.shape, show=self.show, **options
        )

    def init_params(self, key: jax.Array) -> Any:
        """Draws the initial parameters, float32."""
        x, t = jnp.zeros((1, *self.shape)), jnp.zeros((1,))
        if isinstance(self.model, Autoencoder):
            return self.model.init(key, x)["params"]
        condition = () if isinstance(self.model, Classifier) else (null_condition(self.model, x),)
        return self.model.init(key, x, t, *condition)["params"]

    def params_shapes(self) -> Any:
        """The parameter tree as shapes, nothing computed."""
        return jax.eval_shape(self.init_params, base_key(0))


def build(config: ConfigDict, first: First | None = None) -> Experiment:
    """Builds the model and the schedule; `first` is the first stage that `first_stage.ckpt` names,
    if it does.

    Raises:
      UsageError: any field of the config has a value that cannot work, alone or beside the others
        or the first stage.
    """
    check_ranges(config)
    diffusion, size = config.diffusion, config.data.image_size
    image_shape = (size, size, config.data.channels)
    if first is not None:
        first_stages.check_encodes(first.experiment.model, image_shape, config.first_stage.ckpt)
    chain = _chain(config)
    schedule = chain.at()
    check_parameterization(schedule, diffusion.parameterization)
    check_loss(diffusion.loss, diffusion.weighting, diffusion.variance)
    experiment = Experiment(config, None, chain, schedule, image_shape, first)
    try:
        return experiment._replace(model=_model(config, experiment.shape))
    except UsageError as error:
        if first is None:
            raise
        raise UsageError(
            f"Over latents of {'x'.join(map(str, experiment.shape))}: {error}"
        ) from error


def _model(
    config: ConfigDict, shape: tuple[int, int, int]
) -> UNet | DiT | Classifier | Autoencoder:
    """The network over arrays [B, *shape]."""
    dtype = choose("compute dtype", config.model.dtype, DTYPES)
    if config.objective == "first_stage":
        return first_stages.make_network(config, dtype)
    if config.objective == "classifier":
        return make_classifier(config, shape[0], dtype)
    return make_network(config, shape, dtype)


def _chain(config: ConfigDict) -> Chain:
    c = config.diffusion
    betas = make_betas(
        c.schedule,
        c.num_timesteps,
        beta_start=c.beta_start,
        beta_end=c.beta_end,
        scale_betas=c.scale_betas,
    )
    return Chain(betas, time_scale=RESCALED_TIME / c.num_timesteps if c.rescale_timesteps else 1.0)


class Training(NamedTuple):
    """What training needs beside the experiment."""

    objective: Objective
    optimizer: optax.GradientTransformation
    train_step: Any  # not yet mapped over devices
    parallelism: Parallelism  # how it will be


def build_training(experiment: Experiment) -> Training:
    """Builds the objective, the optimiser and the step; nothing is computed.

    Raises:
      UsageError: as `build`.
    """
    config, objective = experiment.config, _objective(experiment)
    o = config.optimizer
    learning_rate = make_learning_rate(
        o.learning_rate,
        warmup_steps=o.warmup_steps,
        decay=o.decay,
        num_steps=config.train.num_steps,
    )
    optimizer = make_optimizer(
        o.name, learning_rate, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay
    )
    optimizer = perceptual.make_players(config, optimizer)
    options = StepOptions(
        ema=Average(
            config.ema.decay, config.ema.warmup, config.ema.rampup_ratio, config.ema.sigma_rel
        ),
        averages=averages_of(config),
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
    return Training(objective, optimizer, train_step, parallelism)


def averages_of(config: ConfigDict) -> dict[str, Average]:
    """The averages kept beside the one to sample from, by name."""
    by_decay = {f"decay_{decay}": Average(decay=decay) for decay in config.ema.decays}
    return by_decay | {
        name: Average(sigma_rel=width) for name, width in snapshot_names(config).items()
    }


def snapshot_names(config: ConfigDict) -> dict[str, float]:
    """Name -> relative width of the averages that snapshots are saved of."""
    return {f"sigma_rel_{width}": width for width in config.ema.sigma_rels}


def _objective(experiment: Experiment) -> Objective:
    objective = _objective_of_images(experiment)
    if experiment.first is None:
        return objective
    return over_latents(objective, experiment.latents, flip=experiment.config.data.flip)


def _objective_of_images(experiment: Experiment) -> Objective:
    config, c = experiment.config, experiment.config.diffusion
    if config.objective == "first_stage":
        return first_stages.make_objective(config, experiment.model)

    def apply(params, *inputs):
        *inputs, dropout_keys = inputs
        keys = dropout_keys if config.model.dropout else None
        return experiment.model.apply({"params": params}, *inputs, dropout_keys=keys)

    if config.objective == "classifier":
        return classifier_objective(
            apply, experiment.schedule, timestep_sampling=c.timestep_sampling, flip=config.data.flip
        )
    return diffusion_objective(
        apply,
        experiment.schedule,
        parameterization=c.parameterization,
        variance=c.variance,
        loss=c.loss,
        weighting=c.weighting,
        timestep_sampling=c.timestep_sampling,
        flip=config.data.flip,
        conditioning=experiment.conditioning,
    )


def init_state(
    experiment: Experiment,
    training: Training,
    frozen: Frozen | None = None,
    given: Given | None = None,
) -> TrainState:
    """Draws the state before the first update from the config's seed, each part of it where it will
    be.

    A model over latents has `frozen` in it; the buffers are shared with the argument. What a first
    stage keeps frozen is read here. Parameters in `given` are these instead of drawn, in the
    averages too.

    Raises:
      UsageError: it cannot be read.
    """
    # It runs once: optimising the program, on a CPU, would take three times as long as all the
    # rest.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    places = training.parallelism.shardings(_state_shapes(experiment, training))
    init = jax.jit(
        functools.partial(_create, experiment, training),
        out_shardings=places,
        compiler_options=options,
    )
    frozen = perceptual.read_frozen(experiment.config) if frozen is None else frozen
    if frozen is not None:
        # From the host: what lies on a device of this process has no way to those of others.
        frozen = jax.device_put(jax.tree.map(np.asarray, frozen), places.objective_state.frozen)
    where = flatten_dict(places.params)
    given = {
        path: jax.device_put(np.asarray(leaf), where[path]) for path, leaf in (given or {}).items()
    }
    return init(init_key(base_key(experiment.config.seed)), frozen, given)


def state_shapes(experiment: Experiment, training: Training) -> TrainState:
    """The state's tree, leaves with shape, dtype and place, nothing computed: what a checkpoint is
    restored into."""
    shapes = _state_shapes(experiment, training)
    places = training.parallelism.shardings(shapes)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )


def _state_shapes(experiment: Experiment, training: Training) -> TrainState:
    return jax.eval_shape(
        functools.partial(_create, experiment, training), base_key(0), frozen_shapes(experiment)
    )


def frozen_shapes(experiment: Experiment) -> Any:
    """What never changes of what the objective remembers, as shapes: the first stage of a model
    over latents.

    Of a first stage it is the weights of the distance that it is held to; None where there is
    nothing of the kind.
    """
    if experiment.first is None:
        return perceptual.frozen_shapes(experiment.config)
    return Frozen(
        experiment.first.experiment.params_shapes(), jax.ShapeDtypeStruct((), jnp.float32)
    )


def objective_state_shapes(experiment: Experiment) -> Any:
    """What the objective remembers, as shapes: of a model over latents, that is where its first
    stage is."""
    state = jax.eval_shape(_objective(experiment).init, experiment.params_shapes())
    return state if experiment.first is None else state._replace(frozen=frozen_shapes(experiment))


def _create(
    experiment: Experiment,
    training: Training,
    key: jax.Array,
    frozen: Any,
    given: Given | None = None,
) -> TrainState:
    averages = averages_of(experiment.config)
    params = replaced(experiment.init_params(key), given or {})
    params = perceptual.with_discriminator(experiment.config, params, key)
    state = create(params, training.optimizer, training.objective, averages)
    if frozen is None:
        return state
    return state._replace(objective_state=state.objective_state._replace(frozen=frozen))


def check_batch(config: ConfigDict) -> None:
    """Refuses a batch that the devices cannot share.

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
            f"train.batch_size is {batch_size}, which {devices} device{'s' if devices > 1 else ''} "
            f"in {parts} part{'s' if parts > 1 else ''} (optimizer.accumulate_steps) cannot share "
            f"evenly: use {fit}, say."
        )
