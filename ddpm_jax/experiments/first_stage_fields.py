"""The fields of the config for a first stage, groups `first_stage` and `sharp`; see `fields`."""

from ddpm_jax.experiments.config_field import POSITIVE, SHARE, at_least, choices, field, only, up_to
from ddpm_jax.experiments.owners import (
    ADVERSARIAL,
    AVERAGES,
    CODEBOOKS,
    FIRST_STAGE,
    FIXED_SCALE,
    KINDS,
    LATENTS,
    NOISY,
    SCALES,
    VAE,
    VQ,
)


class FirstStage:
    """An autoencoder; it uses all fields of the network except those of the time.

    The first three fields belong to a model over the latents of a trained first stage, the others
    to the first stage itself.
    """

    ckpt = field(
        "",
        'directory of its run, or init_from: the model is one of its latents; "": of pixels',
        resumable=True,
        of=NOISY,
    )
    latent_scale = field(
        0.0, "factor of the latents; 0: one over their standard deviation", at_least(0), of=LATENTS
    )
    cache = field(
        "",
        'directory to keep encoded images in; "": every batch is encoded again',
        resumable=True,
        of=LATENTS,
    )
    kind = field(
        "vae", "what z is: the encoder's output, a draw, codes", choices(KINDS), of=FIRST_STAGE
    )
    latent_channels = field(
        4,
        "of the latents, 2**(len(model.ch_mult) - 1) times smaller than the image",
        up_to(4096),
        of=FIRST_STAGE,
    )
    family = field(
        "gaussian",
        "what the decoder says of a pixel",
        choices("gaussian discretized_logistic bernoulli"),
        of=FIRST_STAGE,
    )
    scale = field(
        "shared",
        "of that: fixed, shared (one number, learned), pixel (by the decoder)",
        choices(SCALES),
        of=FIRST_STAGE,
    )
    log_scale = field(0.0, "of the fixed scale, or where the shared one starts", of=FIXED_SCALE)
    beta = field(1.0, "weight of the KL", at_least(0), of=VAE)
    kl_warmup_steps = field(0, "over which it rises from 0", at_least(0), of=VAE)
    free_nats = field(0.0, "of the KL of each channel that cost nothing", at_least(0), of=VAE)
    num_codes = field(512, "rows of the codebook", at_least(2, 1 << 20), of=VQ)
    commitment = field(
        0.25, "weight of the loss that keeps vectors near their codes", at_least(0), of=VQ
    )
    codebook = field("averages", "how it is learned", choices(CODEBOOKS), of=VQ)
    codebook_decay = field(0.99, "of the averages", SHARE, of=AVERAGES)
    restart_below = field(
        0.0, "vectors per update below which a code is given a new place", at_least(0), of=AVERAGES
    )


class Sharp:
    """A perceptual and an adversarial loss, which make reconstructions sharp."""

    OF = FIRST_STAGE
    perceptual_weight = field(
        0.0, "of the LPIPS distance, nats per dimension for a distance of 1; 0: none", at_least(0)
    )
    perceptual_file = field(
        "",
        "its weights, NPZ or safetensors; a run that has begun has them itself",
        resumable=True,
        of=only("sharp.perceptual_weight"),
    )
    adversarial_weight = field(
        0.0, "of a discriminator's verdict, times the adaptive weight; 0: none", at_least(0)
    )
    start_step = field(
        0, "updates before discriminator and verdict begin", at_least(0), of=ADVERSARIAL
    )
    discriminator_ch = field(64, "channels of its first layer", up_to(16_384), of=ADVERSARIAL)
    discriminator_layers = field(
        3,
        "of stride 2: a logit sees 70x70 pixels with 3, 34x34 with 2, 16x16 with 1",
        up_to(10),
        of=ADVERSARIAL,
    )
    discriminator_learning_rate = field(
        2e-4, "of its Adam; warm-up and decay are those of the optimizer", POSITIVE, of=ADVERSARIAL
    )
    discriminator_b1 = field(0.5, "of its Adam", SHARE, of=ADVERSARIAL)
    discriminator_b2 = field(0.9, "of its Adam", SHARE, of=ADVERSARIAL)
