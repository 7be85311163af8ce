"""The fields of the config for the networks of EDM, group `edm_unet`; see `fields`."""

from ddpm_jax.experiments.config_field import at_least, choices, field, up_to
from ddpm_jax.experiments.owners import EDM_UNET, SONG_UNET
from ddpm_jax.models.edm_unets import DECODERS, EMBEDDINGS, ENCODERS


class EdmUnet:
    """What DDPM++, NCSN++ and ADM have besides the fields of the network.

    The defaults are DDPM++; NCSN++ has embedding fourier, embedding_mult 2, encoder residual and
    resample_filter (1, 3, 3, 1).
    """

    OF = EDM_UNET
    embedding = field("positional", "of the noise level", choices(EMBEDDINGS), of=SONG_UNET)
    embedding_mult = field(1, "its sines and cosines, in units of ch", up_to(64), of=SONG_UNET)
    temb_mult = field(4, "features of the embedded noise level, in units of ch", up_to(64))
    encoder = field("standard", "how the image enters levels", choices(ENCODERS), of=SONG_UNET)
    decoder = field("standard", "how it is made of them", choices(DECODERS), of=SONG_UNET)
    resample_filter = field(
        (1, 1), "between levels: its taps, an even number", up_to(1024), longest=12, of=SONG_UNET
    )
    augment_dim = field(
        0, "numbers that tell it how an image was augmented; 0: not told", at_least(0, 1024)
    )
