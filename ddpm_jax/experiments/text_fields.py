"""The fields of the config for texts, groups `text`, `text_unet`, `lora` and
`scheduler`; see `fields`."""

from ddpm_jax.experiments.config_field import POSITIVE, SHARE, at_least, choices, field, only, up_to
from ddpm_jax.experiments.owners import (
    DIFFUSION,
    ENCODERS,
    FINE_TUNED,
    MIDDLES,
    TEXT,
    TRAINED_ENCODER,
    WHOLE_UNET,
)
from ddpm_jax.models.lora import TARGETS
from ddpm_jax.samplers.diffusers_levels import SIGMAS, TIMES


class Text:
    """Captions that the network is given, and the encoder of their features.

    The defaults are the encoder of Stable Diffusion 1 (CLIP ViT-L/14).
    """

    OF = TEXT
    kind = field(
        "transformer", "who learns the encoder: the run, or another one", choices(ENCODERS)
    )
    ckpt = field(
        "",
        'Stable Diffusion or a run with the trained encoder; "": that of init_from',
        resumable=True,
        of=TRAINED_ENCODER,
    )
    cache = field(
        "",
        'directory to keep encoded captions in; "": in memory',
        resumable=True,
        of=TRAINED_ENCODER,
    )
    dropout = field(
        0.1, "share of captions hidden in training, for classifier-free guidance", SHARE
    )
    guidance = field(7.5, "scale of that guidance where none is given", at_least(0), resumable=True)
    length = field(77, "tokens of a text", up_to(4096))
    padding = field("end", "of shorter texts; zero: Stable Diffusion 2", choices("end zero"))
    vocab_size = field(49_408, "tokens that there are", up_to(1 << 20))
    width = field(768, "features of a token", up_to(16_384))
    layers = field(12, "of the encoder", up_to(128))
    heads = field(12, "of its attention", up_to(1024))
    hidden = field(3072, "features inside its layers", up_to(65_536))
    activation = field("quick_gelu", "of its layers", choices("quick_gelu gelu"))


class TextUnet:
    """What a U-Net that reads texts has besides the fields of the network."""

    OF = TEXT
    heads = field(
        (), "of attention on each level; (): model.num_heads", up_to(1024), longest=12, kind=int
    )
    depths = field((1,), "blocks of a transformer, on all levels or on each", up_to(64), longest=12)
    only_cross_attention = field(
        (), "levels, from 0, without attention to pixels", at_least(0, 11), longest=12, kind=int
    )
    mid_block = field("transformer", "between the ways down and up", choices(MIDDLES))
    upcast_attention = field(False, "queries and keys in float32 whatever model.dtype is")
    linear_projection = field(False, "files of diffusers keep linear maps around a transformer")
    null_class = field(True, "with classes: one more that carries no information")


class Lora:
    """Low-rank updates that are trained in place of all weights."""

    OF = TEXT + FINE_TUNED
    rank = field(0, "of the update of a linear map; 0: all weights are trained", at_least(0, 4096))
    alpha = field(
        None, "updates are times alpha / rank; None: 1", POSITIVE, of=only("lora.rank"), kind=float
    )
    targets = field(
        "attention", "the linear maps that have an update", choices(TARGETS), of=only("lora.rank")
    )


class Scheduler:
    """How diffusers samples the model: what `levels diffusers` takes where a command says nothing.

    The defaults are those of Stable Diffusion. A U-Net without texts has the options of each class
    of diffusers, unless `given` says that these are its own.
    """

    OF = DIFFUSION + only("model.name", "unet", "text_unet")
    given = field(False, "these are the options of a U-Net without texts", of=WHOLE_UNET)
    spacing = field("", 'of the times; "": that of the scheduler\'s class', choices(("", *TIMES)))
    sigmas = field("", 'respaced between the first and the last; "": not', choices(("", *SIGMAS)))
    steps_offset = field(1, "added to the times of the spacing leading", at_least(0, 1000))
    set_alpha_to_one = field(False, "DDIM and PNDM end at clean data and not at t = 0")
