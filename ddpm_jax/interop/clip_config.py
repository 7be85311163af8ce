"""The `config.json` of CLIP's encoders, as transformers writes it.

What an encoder computes follows from a few fields, which `read_fields` checks; `IGNORED` ones are
about training, about text generation, which CLIP does not do, or about the library. Any other field
is refused by name, since it may say that this is another network.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ddpm_jax import schema
from ddpm_jax.errors import UsageError

COUNT = schema.Whole(1, 1 << 24)
LAYERS = schema.Whole(1, 256)
PROJECTION = 512  # transformers' default of projection_dim
_IGNORED = """
    _attn_implementation_autoset _name_or_path architectures attention_dropout bos_token_id
    chunk_size_feed_forward diversity_penalty dropout dtype encoder_no_repeat_ngram_size id2label
    initializer_factor initializer_range is_decoder is_encoder_decoder label2id length_penalty
    max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states pad_token_id repetition_penalty
    return_dict temperature tie_encoder_decoder tie_word_embeddings top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_return_dict
    """
IGNORED = frozenset(_IGNORED.split())


class Field(NamedTuple):
    """A field of config.json that our network has under the name `ours`."""

    ours: str
    kind: schema.Kind
    default: Any  # transformers', for files that leave it out


def read_fields(config: Mapping[str, Any], fields: Mapping[str, Field], what: str) -> dict:
    """Return the fields of our network, by our names.

    Args:
      config: of one encoder, as JSON.
      fields: those that decide what it computes, by their names in the file.
      what: the kind of the encoder, for messages: "text encoder".

    Raises:
      UsageError: a field is not of its kind, or unknown.
    """
    known = schema.Table(optional={name: field.kind for name, field in fields.items()})
    try:
        schema.check(dict(config), known)
    except schema.Malformed as error:
        raise UsageError(f"The config of the {what} is damaged: {error}.") from error
    for name in sorted(set(config) - set(fields) - IGNORED):
        # absent, unset and empty mean the same; anything else asks for something
        if config[name]:
            raise UsageError(
                f"The config of the {what} has the option {name} = "
                f"{schema.format_value(config[name])}, which is not known here: what this network "
                "computes may depend on it."
            )
    return {field.ours: config.get(name, field.default) for name, field in fields.items()}


def own_config(config: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], bool]:
    """Return the config of one encoder, and whether its file has the projection.

    Args:
      config: of the encoder, or of a whole CLIP, which has both encoders and their projections.
      kind: "text" or "vision".

    Raises:
      UsageError: it is of another kind of network.
    """
    own_type = f"clip_{kind}_model"
    named = config.get("model_type", own_type)
    if named == "clip":
        inner = (config.get(f"{kind}_config") or {}) | (config.get(f"{kind}_config_dict") or {})
        return inner | {"projection_dim": config.get("projection_dim", PROJECTION)}, True
    if named != own_type:
        raise UsageError(
            f"This config is of a network of type {schema.format_value(named)}: that of CLIP's "
            f"{kind} encoder is {own_type!r}."
        )
    architectures = config.get("architectures") or []
    return dict(config), any("WithProjection" in str(name) for name in architectures)
