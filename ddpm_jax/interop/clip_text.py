"""CLIP's text encoder in the names, layouts and configs of transformers.

A `TextEncoder` is their `CLIPTextModel`, or with a `projection` their
`CLIPTextModelWithProjection`. Names begin with `text_model.` in the files of transformers 4 and
lack it in those of transformers 5; both versions read the first, so that is written. Files of a
whole `CLIPModel` are read too. The names of these tensors in single files of Stable Diffusion are
in `clip_single_file.py`.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from ddpm_jax import schema
from ddpm_jax.interop.clip_config import COUNT, LAYERS, PROJECTION, Field, own_config, read_fields
from ddpm_jax.interop.diffusers import from_torch, to_torch
from ddpm_jax.interop.renaming import Params, Path, rename_from, rename_to, shapes_of
from ddpm_jax.interop.tensor_store import Renamed
from ddpm_jax.models.text_encoder import TextEncoder, check_text_encoder

SOURCE = "text encoder's state dict"
PREFIX = "text_model."
# of a whole CLIP, and a constant of old files
IGNORED = re.compile(r"vision_model\..*|visual_projection\..*|logit_scale|(.*\.)?position_ids")

TOP = {  # ours -> theirs
    "token_embedding": "embeddings.token_embedding.weight",
    "position_embedding": "embeddings.position_embedding.weight",
    "norm_out": "final_layer_norm",
    "text_projection": "text_projection",
}
IN_BLOCK = {
    "norm_1": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "proj_out": "self_attn.out_proj",
    "norm_2": "layer_norm2",
    "mlp_dense0": "mlp.fc1",
    "mlp_dense1": "mlp.fc2",
}

CONFIG = {
    "vocab_size": Field("vocab_size", COUNT, 49_408),
    "hidden_size": Field("width", COUNT, 512),
    "num_hidden_layers": Field("layers", LAYERS, 12),
    "num_attention_heads": Field("heads", COUNT, 8),
    "intermediate_size": Field("hidden", COUNT, 2048),
    "hidden_act": Field("activation", schema.Text(), "quick_gelu"),
    "max_position_embeddings": Field("context_length", COUNT, 77),
    "layer_norm_eps": Field("norm_eps", schema.Number(), 1e-5),
    "eos_token_id": Field("end_id", schema.Whole(), 49_407),
    "projection_dim": Field("projection", COUNT, PROJECTION),
}
# This eos_token_id is an error of old files and stands for the largest id: `TextEncoder.end_id` is
# None.
LARGEST_ID = 2


def text_encoder_from_config(config: Mapping[str, Any]) -> TextEncoder:
    """Return the encoder that a `config.json` describes, computing in float32.

    Args:
      config: of a `CLIPTextModel`, with projection or without, or of a whole `CLIPModel`.

    Raises:
      UsageError: it is of another kind of network, a field is damaged, or one is not known here.
    """
    own, projected = own_config(config, "text")
    fields = read_fields(own, CONFIG, "text encoder")
    if fields["end_id"] == LARGEST_ID:
        fields["end_id"] = None
    if not projected:
        fields["projection"] = 0
    encoder = TextEncoder(**fields)
    check_text_encoder(encoder)
    return encoder


def config_from_text_encoder(encoder: TextEncoder) -> dict[str, Any]:
    """Return the `config.json` of an encoder, as transformers reads it."""
    values = {name: getattr(encoder, field.ours) for name, field in CONFIG.items()}
    suffix = "WithProjection" if encoder.projection else ""
    return values | {
        "architectures": [f"CLIPTextModel{suffix}"],
        "model_type": "clip_text_model",
        "eos_token_id": LARGEST_ID if encoder.end_id is None else encoder.end_id,
        "projection_dim": encoder.projection or PROJECTION,
    }


def text_params_from_transformers(
    state_dict: Mapping[str, np.ndarray],
    encoder: TextEncoder,
    *,
    dtype: DTypeLike | None = np.float32,
) -> dict[str, Any]:
    """Convert the state dict of a `CLIPTextModel` or a `CLIPModel` to parameters.

    Args:
      state_dict: name -> array; linear maps [out, in]. Names may begin with `text_model.`.
      encoder: the network whose fields match the checkpoint.
      dtype: of the parameters; None: of each tensor as it is.

    Returns:
      params, nested: `encoder.apply({"params": params}, ids)`.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, or does
        not hold weights.
    """
    unused = set() if encoder.projection else {"text_projection.weight"}
    return rename_from(
        tensors_of_one(state_dict, PREFIX, IGNORED, unused),
        text_encoder_shapes(encoder),
        lambda path: clip_name(path, TOP),
        from_torch,
        SOURCE,
        network="text encoder",
        fields="vocab_size, width, layers, hidden, context_length, projection",
        dtype=dtype,
    )


def text_params_to_transformers(params: Params, encoder: TextEncoder) -> dict[str, np.ndarray]:
    """Convert the parameters of an encoder to transformers' names with the prefix, float32."""
    del encoder  # the name of a parameter does not depend on its fields
    return rename_to(params, lambda path: _prefixed(clip_name(path, TOP)), to_torch)


def text_encoder_shapes(encoder: TextEncoder) -> dict[Path, tuple[int, ...]]:
    """Return the shape of every parameter, without computing any."""
    return shapes_of(encoder, jax.ShapeDtypeStruct((1, 1), jnp.int32))


def tensors_of_one(
    state_dict: Mapping[str, np.ndarray], prefix: str, ignored: re.Pattern, unused: Collection[str]
) -> Mapping[str, np.ndarray]:
    """Return the tensors of one encoder, without the prefix of its names in a whole CLIP."""
    return Renamed(
        state_dict,
        lambda name: name.removeprefix(prefix),
        [name for name in state_dict if name not in unused and not ignored.fullmatch(name)],
    )


def clip_name(path: Path, top: Mapping[str, str]) -> str:
    """Return transformers' name of the parameter at a path, without the prefix.

    `top` has the names of what is not in a block, ours -> theirs.
    """
    first, *rest = path
    if not rest:
        return top[first]
    end = "bias" if path[-1] == "bias" else "weight"
    if first in top:
        return f"{top[first]}.{end}"
    return f"encoder.layers.{first.removeprefix('block_')}.{IN_BLOCK[rest[0]]}.{end}"


def _prefixed(name: str) -> str:
    return name if name.startswith("text_projection") else PREFIX + name
