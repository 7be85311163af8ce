"""CLIP's image encoder in the names, layouts and configs of transformers.

An `ImageEncoder` is their `CLIPVisionModelWithProjection`, or without a `projection` their
`CLIPVisionModel`. Files of a whole `CLIPModel` are read too; the text's side is in `clip_text.py`.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from ddpm_jax import schema
from ddpm_jax.interop.clip_config import COUNT, LAYERS, PROJECTION, Field, own_config, read_fields
from ddpm_jax.interop.clip_text import clip_name, tensors_of_one
from ddpm_jax.interop.diffusers_dit import patches_from_torch
from ddpm_jax.interop.renaming import rename_from, shapes_of
from ddpm_jax.models.image_encoder import ImageEncoder, check_image_encoder

SOURCE = "image encoder's state dict"
PREFIX = "vision_model."
# of a whole CLIP, and a constant of old files
IGNORED = re.compile(r"text_model\..*|text_projection\..*|logit_scale|(.*\.)?position_ids")

TOP = {  # ours -> theirs
    "class_embedding": "embeddings.class_embedding",
    "position_embedding": "embeddings.position_embedding.weight",
    "patch_embedding": "embeddings.patch_embedding",
    "norm_in": "pre_layrnorm",
    "norm_out": "post_layernorm",
    "visual_projection": "visual_projection",
}

CONFIG = {
    "image_size": Field("image_size", COUNT, 224),
    "patch_size": Field("patch_size", COUNT, 32),
    "hidden_size": Field("width", COUNT, 768),
    "num_hidden_layers": Field("layers", LAYERS, 12),
    "num_attention_heads": Field("heads", COUNT, 12),
    "intermediate_size": Field("hidden", COUNT, 3072),
    "hidden_act": Field("activation", schema.Text(), "quick_gelu"),
    "num_channels": Field("channels", COUNT, 3),
    "layer_norm_eps": Field("norm_eps", schema.Number(), 1e-5),
    "projection_dim": Field("projection", COUNT, PROJECTION),
}


def image_encoder_from_config(config: Mapping[str, Any]) -> ImageEncoder:
    """Return the encoder that a `config.json` describes, computing in float32.

    Args:
      config: of a `CLIPVisionModel`, with projection or without, or of a whole `CLIPModel`.

    Raises:
      UsageError: it is of another kind of network, a field is damaged, or one is not known here.
    """
    own, projected = own_config(config, "vision")
    fields = read_fields(own, CONFIG, "image encoder")
    encoder = ImageEncoder(**fields | ({} if projected else {"projection": 0}))
    check_image_encoder(encoder)
    return encoder


def image_params_from_transformers(
    state_dict: Mapping[str, np.ndarray],
    encoder: ImageEncoder,
    *,
    dtype: DTypeLike | None = np.float32,
    source: str = SOURCE,
) -> dict[str, Any]:
    """Convert the state dict of a `CLIPVisionModel` or a `CLIPModel` to parameters.

    Args:
      state_dict: name -> array; convolutions [out, in, height, width], linear maps [out, in]. Names
        may begin with `vision_model.`.
      encoder: the network whose fields match the checkpoint.
      dtype: of the parameters; None: of each tensor as it is.
      source: what the tensors are, for messages.

    Returns:
      params, nested: `encoder.apply({"params": params}, images)`.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, or does
        not hold weights.
    """
    unused = set() if encoder.projection else {"visual_projection.weight"}
    shape = (1, encoder.image_size, encoder.image_size, encoder.channels)
    return rename_from(
        tensors_of_one(state_dict, PREFIX, IGNORED, unused),
        shapes_of(encoder, jax.ShapeDtypeStruct(shape, jnp.float32)),
        lambda path: clip_name(path, TOP),
        patches_from_torch,
        source,
        network="image encoder",
        fields="image_size, patch_size, width, layers, hidden, projection",
        dtype=dtype,
    )
