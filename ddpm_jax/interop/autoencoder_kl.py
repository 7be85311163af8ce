"""First stages in the names and layouts of diffusers' `AutoencoderKL` and `VQModel`.

An `Autoencoder` is their `AutoencoderKL` with `moments`, their `VQModel` with `num_codes`. Their
fields are

- `block_out_channels` for ch times each of ch_mult, whose first is 1, and `layers_per_block` for
  `num_res_blocks`;
- `AttnDownEncoderBlock2D` and `AttnUpDecoderBlock2D` at the levels in `attn_resolutions`,
  `DownEncoderBlock2D` and `UpDecoderBlock2D` at the others; attention with one head;
- `latent_channels`, `num_vq_embeddings` for `num_codes`, and a `vq_embed_dim` that is unset;
- `norm_eps` 1e-6 and `downsample_padding` "end", which are our defaults.

They have no parameter `log_scale`: it is dropped when writing, and initialised again when reading.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from ddpm_jax.interop.diffusers import SOURCE, from_torch, new_name, tensor_name, to_torch
from ddpm_jax.interop.renaming import Params, Path, rename_from, rename_to, shapes_of
from ddpm_jax.interop.tensor_store import Renamed
from ddpm_jax.models.autoencoder import Autoencoder

# ours -> theirs, besides encoder and decoder
TOP = {"quant": "quant_conv", "post_quant": "post_quant_conv"}
CODEBOOK = "quantize.embedding.weight"
LOG_SCALE = "log_scale"


def autoencoder_params_from_diffusers(
    state_dict: Mapping[str, np.ndarray],
    model: Autoencoder,
    *,
    dtype: DTypeLike | None = np.float32,
) -> dict[str, Any]:
    """Convert a diffusers `AutoencoderKL` or `VQModel` state dict to parameters.

    Args:
      state_dict: name -> array; convolutions [out, in, height, width], linear maps [out, in].
        Attention may have its old names (query, key, value, proj_attn) or its new ones (to_q, to_k,
        to_v, to_out.0).
      model: the network whose fields match the checkpoint.
      dtype: of the parameters; None: of each tensor as it is.

    Returns:
      params, nested: `model.apply({"params": params}, x, method="encode")`.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, or does
        not hold weights.
    """
    state_dict = Renamed(state_dict, new_name)
    shapes = autoencoder_shapes(model)
    params = rename_from(
        state_dict,
        {path: shape for path, shape in shapes.items() if path != (LOG_SCALE,)},
        lambda path: _name(path, len(model.ch_mult)),
        from_torch,
        SOURCE,
        network="first stage",
        dtype=dtype,
    )
    return (
        params
        if model.shared_log_scale is None
        else params | {LOG_SCALE: np.float32(model.shared_log_scale)}
    )


def autoencoder_params_to_diffusers(params: Params, model: Autoencoder) -> dict[str, np.ndarray]:
    """Convert the parameters of a first stage to a diffusers state dict (new names).

    All arrays are float32.
    """
    theirs = {name: value for name, value in params.items() if name != LOG_SCALE}
    return rename_to(theirs, lambda path: _name(path, len(model.ch_mult)), to_torch)


def autoencoder_shapes(model: Autoencoder) -> dict[Path, tuple[int, ...]]:
    """Return the shape of every parameter, without computing any."""
    image = jax.ShapeDtypeStruct((1, model.factor, model.factor, model.image_channels), jnp.float32)
    return shapes_of(model, image)


def _name(path: Path, num_levels: int) -> str:
    part, *rest = path
    if part == "codebook":
        return CODEBOOK
    if part in TOP:
        return f"{TOP[part]}.{'bias' if rest == ['bias'] else 'weight'}"
    return f"{part}.{tensor_name(tuple(rest), num_levels)}"
