"""Every field of the config: default, meaning, values. `config.model.ch` is `Model.ch` below.

A config file starts from `default_config()`, which has all of these, and sets what its experiment
needs; `--config.model.ch=64` sets one on the command line. The defaults are those of DDPM on
CIFAR-10 (Ho et al. 2020). `of` names the models that have a field: others refuse it. A run may be
resumed with another value of what is `resumable`; all else is as it was when the run began.
"""

from ddpm_jax.diffusion.clipping import CLIPPINGS
from ddpm_jax.experiments.config_field import (
    POSITIVE,
    SHARE,
    Field,
    Multiple,
    Range,
    at_least,
    choices,
    field,
    list_fields,
    only,
    up_to,
)
from ddpm_jax.experiments.distill_fields import Distill
from ddpm_jax.experiments.edm_fields import EdmUnet
from ddpm_jax.experiments.first_stage_fields import FirstStage, Sharp
from ddpm_jax.experiments.mean_flow_fields import MeanFlow
from ddpm_jax.experiments.owners import (
    CHAIN,
    CLASSED,
    CLASSIFIER,
    CONDITIONED,
    CONTINUOUS,
    DIFFUSION,
    EDM_UNET,
    FINE_TUNED,
    FIXED,
    GIVEN,
    LEARNED,
    LEVELS,
    LINEAR_UNET,
    NETWORKS,
    NOISY,
    OBJECTIVES,
    PLAIN_UNET,
    PREDICTIONS,
    PROCESSES,
    PYRAMID,
    RESIDUAL,
    TRANSFORMER,
    UNET,
    WHOLE_UNET,
    WITH_CLASSES,
)
from ddpm_jax.experiments.text_fields import Lora, Scheduler, Text, TextUnet
from ddpm_jax.limits import MAX_IMAGES, MAX_SEED, MAX_TIMESTEPS
from ddpm_jax.models.classifier import POOLS
from ddpm_jax.models.dit import POSITIONS
from ddpm_jax.models.layers import RESAMPLINGS
from ddpm_jax.models.trunk import QKV_ORDERS
from ddpm_jax.models.unet import MIDDLES

BETA = Range(above=0, at_most=1)
SIGMA = Range(at_least=1e-7, at_most=10**8)  # no images have as little or as much noise
LOGARITHM = Range(at_least=-50, at_most=50)  # of a logarithm
LOGNORMAL = DIFFUSION + GIVEN + only("diffusion.levels", "lognormal")
# 12**-0.5 is the relative width of an average in which all of the run weighs the same
WIDTH, FURTHER_WIDTH = Range(at_least=0, below=12**-0.5), Range(above=0, below=12**-0.5)


class Run:
    """The fields that are in no group."""

    seed = field(0, "of the initial weights, the data order and every draw", at_least(0, MAX_SEED))
    parallel = field(
        "pmap",
        "the state on every device, or split over them",
        choices("pmap fsdp"),
        resumable=True,
    )
    objective = field("diffusion", "what is trained", choices(OBJECTIVES))
    init_from = field("", 'run or files whose weights this one begins with; "": none')
    init_from_step = field(
        None, "which of its checkpoints; None: the newest", at_least(0), of=FINE_TUNED, kind=int
    )
    init_from_raw = field(False, "its weights as trained, not their moving average", of=FINE_TUNED)


class Data:
    """The images."""

    name = field("cifar10", 'a TFDS image dataset, "digits", "emoji", or "folder"')
    data_dir = field("", "TFDS's data_dir, or the folder of images", resumable=True)
    train_split = field("train", "what is trained on")
    test_split = field("test", "what is held out: never trained on")
    holdout = field(
        0.0, "share of the training images to hold out where there is no test split", SHARE
    )
    image_size = field(32, "height and width in pixels", up_to(8192))
    channels = field(3, "of an image: grey or RGB", choices((1, 3)))
    flip = field(True, "mirror training images at random")
    augment = field(
        0.0,
        "probability of each of EDM's transformations, which condition the network; 0: none",
        Range(at_least=0, at_most=1),
        of=DIFFUSION + EDM_UNET,
    )
    cache = field(
        "auto", "keep decoded images in memory", choices("auto always never"), resumable=True
    )
    unreadable = field("stop", "an image that cannot be read", choices("stop skip"), resumable=True)
    small = field(
        "stop", "an image smaller than image_size", choices("stop skip enlarge"), resumable=True
    )
    layout = field(
        "auto", "what folders are; auto: by name", choices("auto classes splits"), resumable=True
    )
    captions = field("", 'of the images: auto, or the field that holds them; "": none')


class Diffusion:
    """The way from x_0 to noise, and what is learned of it."""

    OF = NOISY
    process = field("chain", "T steps, or a process in continuous time", choices(PROCESSES))
    num_timesteps = field(
        1000, "T; in continuous time the levels that have a number", at_least(2, MAX_TIMESTEPS)
    )
    rescale_timesteps = field(
        False,
        "give the network times in 0..1000 whatever T is",
        of=only("diffusion.process", "chain", "flow", "cosine"),
    )
    schedule = field(
        "linear",
        "of the betas",
        choices(
            "linear quad const jsd warmup10 warmup50 cosine scaled_linear sigmoid "
            "sigmoid_alphas_bar"
        ),
        of=CHAIN,
    )
    beta_start = field(
        None, "the first; None: the schedule's published value", BETA, kind=float, of=CHAIN
    )
    beta_end = field(None, "the last; likewise", BETA, kind=float, of=CHAIN)
    scale_betas = field(False, "the end points are those of 1000 steps: scale them to T", of=CHAIN)
    zero_terminal_snr = field(
        False, "shift and scale sqrt(alphas_bar) so that it ends at 0", of=CHAIN
    )
    sigma_min = field(
        None,
        "the least noise, of vdm before training; None: the process's own",
        SIGMA,
        kind=float,
        of=CONTINUOUS,
    )
    sigma_max = field(None, "the most; likewise", SIGMA, kind=float, of=CONTINUOUS)
    shift = field(
        1.0,
        "every sigma is so many times the process's: more for larger images",
        Range(at_least=1e-3, at_most=1000),
        of=GIVEN,
    )
    parameterization = field("eps", "what the network predicts", choices(PREDICTIONS), of=DIFFUSION)
    sigma_data = field(
        0.5,
        "standard deviation of what diffuses, of EDM's preconditioning",
        POSITIVE,
        of=DIFFUSION + only("diffusion.parameterization", "edm"),
    )
    variance = field(
        "fixed_large",
        "of a step back",
        choices("fixed_small fixed_large posterior learned learned_range"),
        of=DIFFUSION,
    )
    clip = field(
        "static",
        "of a predicted x_0, over pixels, where a command does not say",
        choices(CLIPPINGS),
        of=DIFFUSION,
    )
    loss = field("simple", "what is minimised", choices("simple vlb hybrid"), of=DIFFUSION)
    weighting = field(
        "uniform",
        "of the simple loss over t",
        choices("uniform min_snr p2 learned velocity likelihood"),
        of=DIFFUSION + FIXED,
    )
    timestep_sampling = field(
        "uniform", "of t in training", choices("uniform antithetic low_discrepancy importance")
    )
    bound = field(
        "continuous",
        "that is minimised: of all levels, or of the T that have a number",
        choices("continuous discrete"),
        of=DIFFUSION + LEARNED,
    )
    levels = field(
        "uniform", "their distribution in training", choices(LEVELS), of=DIFFUSION + GIVEN
    )
    level_mean = field(-1.2, "of ln sigma", LOGARITHM, of=LOGNORMAL)
    level_std = field(1.2, "its standard deviation", POSITIVE, of=LOGNORMAL)
    mode_scale = field(
        1.29,
        "how flat the distribution is in its middle",
        Range(at_least=-1, at_most=1.75),
        of=DIFFUSION + GIVEN + only("diffusion.levels", "mode"),
    )
    coupling = field(
        "independent",
        "of noise with images in training: ot by mini-batch optimal transport, a device's batch",
        choices("independent ot"),
        of=DIFFUSION + only("diffusion.process", "flow"),
    )


class Model:
    """The network.

    A transformer has dropout, time_embedding, norm_eps, dtype and remat, and the next group.
    """

    name = field("unet", "the kind of network", choices(NETWORKS))
    ch = field(128, "channels of the first convolution", up_to(16_384), of=PYRAMID)
    ch_mult = field(
        (1, 2, 2, 2),
        "channels of each level, in units of ch; whole or not",
        Range(above=0, at_most=1024),
        kind=Multiple,
        longest=12,
        of=PYRAMID,
    )
    num_res_blocks = field(2, "of a level on the way down; up: one more", up_to(64), of=RESIDUAL)
    attn_resolutions = field(
        (16,),
        "heights of the feature maps that get attention",
        up_to(8192),
        longest=64,
        of=RESIDUAL,
    )
    num_heads = field(1, "of attention", up_to(1024), of=UNET)
    num_heads_up = field(
        0, "num_heads on the way up; 0: the same", at_least(0, 1024), of=PLAIN_UNET
    )
    head_channels = field(
        0, "of a head, in place of num_heads; 0: not given", at_least(0, 16_384), of=PLAIN_UNET
    )
    scale_shift_norm = field(
        False, "the time scales and shifts a block's second norm", of=NOISY + UNET
    )
    downsample_padding = field(
        "end", "where a stride of 2 pads; both: Improved DDPM", choices("end both"), of=UNET
    )
    resampling = field(
        "conv",
        "between levels; block: Dhariwal and Nichol 2021; pool: no parameters",
        choices(RESAMPLINGS),
        of=PLAIN_UNET,
    )
    block_down = field(
        (),
        "levels, from 0, that a residual block halves, whatever resampling is",
        at_least(0, 11),
        kind=int,
        longest=12,
        of=PLAIN_UNET,
    )
    block_up = field(
        (), "levels that one doubles", at_least(0, 11), kind=int, longest=12, of=PLAIN_UNET
    )
    mid_block = field("attention", "between the ways down and up", choices(MIDDLES), of=WHOLE_UNET)
    dropout = field(0.1, "share of the activations", SHARE)
    time_embedding = field(
        "sin_cos",
        "DDPM; cos_sin: Improved DDPM, DiT",
        choices("sin_cos sin_cos_exclusive cos_sin cos_sin_inclusive"),
        of=NOISY + CONDITIONED,
    )
    fourier_features = field(
        (),
        "n of the sines and cosines of 2^n pi x_t that the network gets as further channels",
        at_least(0, 16),
        kind=int,
        longest=8,
        of=WHOLE_UNET,
    )
    time_channels = field(
        0, "sines and cosines that embed the time; 0: ch", at_least(0, 16_384), of=PLAIN_UNET
    )
    norm_eps = field(1e-6, "added to the variance in normalisations", POSITIVE)
    norm_groups = field(32, "of channels, in normalisations", up_to(1024), of=UNET)
    dtype = field(
        "float32", "of the computation; parameters are float32", choices("float32 bfloat16")
    )
    remat = field(
        "none",
        "computed again in the backward pass",
        choices("none products blocks"),
        resumable=True,
    )
    pool = field("mean", "of what a classifier sees", choices(POOLS), of=CLASSIFIER)
    qkv_order = field(
        "heads",
        "of one head or map after the other, in OpenAI's files; the network is the same",
        choices(QKV_ORDERS),
        of=PLAIN_UNET,
    )


class Dit:
    """The transformer."""

    OF = TRANSFORMER
    size = field("S", "of its paper; custom: of the next three fields", choices("S B L XL custom"))
    hidden_size = field(384, "channels of a token", up_to(65_536))
    depth = field(12, "blocks", up_to(128))
    num_heads = field(6, "of attention", up_to(1024))
    patch_size = field(2, "height and width of a token in what the network sees", up_to(8192))
    positions = field(
        "formula", "of tokens; table: as files bring them, for one size", choices(POSITIONS)
    )


class LinearUnet:
    """The U-Net with linear attention, of denoising-diffusion-pytorch."""

    OF = LINEAR_UNET
    full_attention = field(
        (3,), "levels whose attention is not linear, from 0", at_least(0, 11), longest=12
    )
    heads = field(4, "of attention", up_to(1024))
    head_channels = field(32, "of a head", up_to(16_384))
    norm_groups = field(0, "of the norms in blocks; 0: root mean square norms", at_least(0, 16_384))


class Condition:
    """Inputs of the network besides x_t and t."""

    OF = NOISY
    num_classes = field(
        0, "its class, of the data's so many; 0: not given", at_least(0, 1_000_000), of=CLASSED
    )
    null_class = field(
        True,
        "one class more, the last, that carries no information",
        of=DIFFUSION
        + only("model.name", "unet", "dit", "song_unet", "adm_unet", "edm2_unet")
        + WITH_CLASSES,
    )
    label_dropout = field(
        0.0, "share hidden in training, for classifier-free guidance", SHARE, of=DIFFUSION
    )
    low_res_factor = field(
        0,
        "the image shrunk so many times; 0: not given",
        at_least(0),
        of=DIFFUSION + CONDITIONED,
    )
    inpainting = field(
        False,
        "a mask and the masked picture's latents; read from files, not trained",
        of=DIFFUSION + CONDITIONED,
    )


class Optimizer:
    """From a gradient to an update."""

    name = field("adam", "the method", choices("adam adamw"))
    learning_rate = field(2e-4, "after the warm-up", POSITIVE)
    b1 = field(0.9, "decay of the mean of gradients", SHARE)
    b2 = field(0.999, "decay of the mean of their squares", SHARE)
    eps = field(1e-8, "added to the root of the latter", POSITIVE)
    weight_decay = field(0.0, "adamw only", at_least(0))
    groups = field(
        "", 'PATTERN=FACTOR,...: of the learning rate of parameters by their paths; "": none'
    )
    warmup_steps = field(5000, "linear, from 0", at_least(0))
    decay = field("constant", "after the warm-up", choices("constant cosine linear"))
    clip_norm = field(1.0, "global norm of the gradient; 0: no clipping", at_least(0))
    clip_scope = field(
        "replica", "of the original; average: of the batch", choices("replica average")
    )
    accumulate_steps = field(1, "parts in which a device computes its share", up_to(1 << 20))


class Ema:
    """The moving average of the weights, and further ones."""

    decay = field(0.9999, "of the average that images are made with", SHARE)
    warmup = field(False, "min(decay, (1 + step) / (10 + step))")
    rampup_ratio = field(0.0, "largest half-life as a share of the steps done (EDM: 0.05)", SHARE)
    sigma_rel = field(0.0, "above 0: a power function of time of this relative width (EDM2)", WIDTH)
    decays = field((), "of further averages, for the command ema", SHARE, longest=16, kind=float)
    sigma_rels = field(
        (), "likewise; any width can be made from two", FURTHER_WIDTH, longest=16, kind=float
    )
    snapshot_every = field(0, "steps between these snapshots; 0: none", at_least(0), resumable=True)


class Train:
    """The loop."""

    RESUMABLE = True
    num_steps = field(800_000, "updates", at_least(1))
    batch_size = field(128, "over all devices", up_to(1 << 20), resumable=False)
    log_every = field(100, "steps between records", at_least(1))
    sample_every = field(10_000, "steps between sample grids; 0: only the last", at_least(0))
    num_samples = field(64, "images in a grid", up_to(1 << 16))
    sample_steps = field(1000, "steps of the chain for a grid", at_least(1), of=NOISY)
    skip_nonfinite = field(
        0, "updates in a row passed over if loss or gradient is not finite", at_least(0)
    )
    raw_grid = field(False, "show samples of the raw weights next to those of the EMA", of=NOISY)
    steps_per_call = field(1, "updates dispatched together, for short steps", up_to(10_000))


class Eval:
    """A metric of samples while it trains: `evaluate`'s, of few and in few steps."""

    OF = DIFFUSION
    RESUMABLE = True
    metric = field("", 'which; "": none', choices(("", "fid", "kid", "is", "cmmd", "fid_infinity")))
    every_steps = field(10_000, "steps between two; also after the last", at_least(1))
    num_samples = field(1000, "samples of each", at_least(2, MAX_IMAGES))
    num_reference = field(
        10_000, "training images to compare with, spread over all", at_least(2, MAX_IMAGES)
    )
    features = field("inception", "whose features: inception dinov2 clip digits pixels")
    feature_weights = field("", "file of the network's weights")
    sampler = field("ddim", "of the samples")
    sample_steps = field(20, "of the sampler", at_least(1, MAX_TIMESTEPS))
    batch_size = field(100, "samples at a time, over all devices", up_to(1 << 16))
    keep_best = field(True, "the weights of the best one, as a run of their own in best/")
    patience = field(0, "evaluations without a better one that end the run; 0: never", at_least(0))


class Checkpoint:
    """What is kept of a run."""

    RESUMABLE = True
    save_every = field(5000, "steps", at_least(1))
    keep_last = field(2, "checkpoints", up_to(1_000_000))
    keep_every = field(
        0, "keep also those at multiples of this step, for ever; 0: none", at_least(0)
    )


GROUPS = {
    "": Run,
    "data": Data,
    "diffusion": Diffusion,
    "model": Model,
    "dit": Dit,
    "linear_unet": LinearUnet,
    "edm_unet": EdmUnet,
    "condition": Condition,
    "distill": Distill,
    "mean_flow": MeanFlow,
    "text": Text,
    "text_unet": TextUnet,
    "lora": Lora,
    "scheduler": Scheduler,
    "first_stage": FirstStage,
    "sharp": Sharp,
    "optimizer": Optimizer,
    "ema": Ema,
    "train": Train,
    "eval": Eval,
    "checkpoint": Checkpoint,
}
FIELDS: dict[str, Field] = {
    spec.name: spec
    for name, group in GROUPS.items()
    for spec in list_fields(f"{name}." if name else "", group)
}
