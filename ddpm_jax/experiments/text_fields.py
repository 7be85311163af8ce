"""The fields of the config for texts, group `text`; see `fields`."""

from ddpm_jax.experiments.config_field import SHARE, at_least, choices, field, up_to
from ddpm_jax.experiments.owners import ENCODERS, TEXT, TRAINED_ENCODER


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
        "directory of the trained encoder; a run that has begun has it itself",
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
