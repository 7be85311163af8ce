"""The models that have a field of the config which not all have, and their names in messages."""

from ddpm_jax.experiments.config_field import only

OBJECTIVES = {  # what can be trained, and its name in messages
    "diffusion": "a diffusion model",
    "classifier": "a classifier",  # of noisy images, to guide a diffusion model
    "first_stage": "a first stage",  # of latent diffusion, or for itself
}
NETWORKS = {
    "unet": "a U-Net",
    "text_unet": "a U-Net that reads texts",
    "dit": "a transformer, whose fields are in the group dit,",
    "linear_unet": "a U-Net with linear attention, whose fields are in the group linear_unet,",
    "song_unet": "DDPM++ or NCSN++, whose fields are in the group edm_unet,",
    "adm_unet": "ADM, whose fields are in the group edm_unet,",
    "edm2_unet": "the network of EDM2",
}
PROCESSES = {  # what adds noise
    "chain": "a chain of T steps",
    "edm": "the process of EDM",
    "ve": "a variance-exploding process",
    "vp": "a variance-preserving process in continuous time",
    "flow": "a flow",
    "cosine": "a cosine path",
    "vdm": "a process whose levels are learned",
}
PREDICTIONS = {  # what a network predicts
    "eps": "a network that predicts eps",
    "x_0": "a network that predicts x_0",
    "v": "a network that predicts v",
    "mu": "a network that predicts mu",
    "edm": "a network with EDM's preconditioning",
    "score": "a network that predicts the score",
    "velocity": "a network that predicts the velocity of a flow",
}
LEVELS = {  # of training, in continuous time
    "uniform": "a uniform distribution of levels",
    "lognormal": "a lognormal distribution of levels",
    "mode": "SD3's distribution of levels with heavy tails",
}
ENCODERS = {  # of texts
    "transformer": "an encoder of texts that is learned with the network",
    "clip": "an encoder of texts that was trained before",
}
KINDS = {kind: f"a first stage of the kind {kind!r}" for kind in ("ae", "vae", "vq")}
SCALES = {"fixed": "", "shared": "", "pixel": "a decoder that gives a scale for each number"}
CODEBOOKS = {"averages": "", "gradient": "a codebook that is learned by its gradient"}

MIDDLES = ("transformer", "block", "none")  # of a U-Net that reads texts

DIFFUSION, FIRST_STAGE = only("objective", "diffusion"), only("objective", "first_stage")
CHAIN = only("diffusion.process", "chain")
CONTINUOUS = only("diffusion.process", *(name for name in PROCESSES if name != "chain"))
LEARNED = only("diffusion.process", "vdm")
FIXED = only("diffusion.process", *(name for name in PROCESSES if name != "vdm"))
GIVEN = only("diffusion.process", *(name for name in PROCESSES if name not in ("chain", "vdm")))
CLASSIFIER = only("objective", "classifier")  # of noisy images
NOISY = only("objective", "diffusion", "classifier")  # models of x_t
UNET, TRANSFORMER = only("model.name", "unet", "text_unet"), only("model.name", "dit")
PLAIN_UNET = NOISY + only("model.name", "unet")  # without texts; a classifier is half of one
WHOLE_UNET = DIFFUSION + only("model.name", "unet")
RESIDUAL = only("model.name", "unet", "text_unet", "song_unet", "adm_unet", "edm2_unet")
PYRAMID = only(
    "model.name", "unet", "text_unet", "linear_unet", "song_unet", "adm_unet", "edm2_unet"
)
LINEAR_UNET = only("model.name", "linear_unet")
SONG_UNET = only("model.name", "song_unet")
EDM_UNET = only("model.name", "song_unet", "adm_unet")
CONDITIONED = only("model.name", "unet", "text_unet", "dit")  # may be given more than x_t and t
CLASSED = only(  # or a class
    "model.name", "unet", "text_unet", "dit", "song_unet", "adm_unet", "edm2_unet"
)
WITH_CLASSES = only("condition.num_classes")
TEXT = only("model.name", "text_unet")
TRAINED_ENCODER = TEXT + only("text.kind", "clip")
LATENTS = NOISY + only("first_stage.ckpt")  # models of a trained first stage's latents
VAE = FIRST_STAGE + only("first_stage.kind", "vae")
VQ = FIRST_STAGE + only("first_stage.kind", "vq")
AVERAGES = VQ + only("first_stage.codebook", "averages")
FIXED_SCALE = FIRST_STAGE + only("first_stage.scale", "fixed", "shared")
ADVERSARIAL = only("sharp.adversarial_weight")
FINE_TUNED = only("init_from")
