"""Stable Diffusion 1.x and 2.x in one file, .ckpt or .safetensors, as its authors' code saves it.

    model.diffusion_model.*      the U-Net (`compvis.py`)
    model_ema.*                  the moving average of its weights, in unpruned files
    first_stage_model.*          the VAE (`compvis_vae.py`)
    cond_stage_model.*           the text encoder (`clip_single_file.py`)

Such a file has no configs. Sizes follow from the tensors, and all else is as in the released
models: 1.x has 8 heads, 2.x heads of 64 features. Whether a network predicts v or eps leaves no
trace.
"""

import pathlib
from collections.abc import Iterable

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.interop.clip_single_file import (
    OF_OPENCLIP,
    text_encoder_of_single_file,
    text_names_of_single_file,
)
from ddpm_jax.interop.clip_text import config_from_text_encoder
from ddpm_jax.interop.compvis import PREFIX, unet_names_from_compvis
from ddpm_jax.interop.compvis_vae import vae_names_from_compvis
from ddpm_jax.interop.pipeline_parts import Part, Pipeline
from ddpm_jax.interop.released_configs import scheduler_config, unet_config, vae_config
from ddpm_jax.interop.tensor_store import Stored, TensorStore, open_tensors

PREDICTIONS = {"epsilon": "the noise", "v_prediction": "v"}
_XL = "conditioner.embedders."
# with which the names of a tensor in such a file begin, those of XL too
PREFIXES = (PREFIX, "first_stage_model.", "cond_stage_model.", _XL)
_PAD_OF_OPENCLIP = "!"  # id 0, which OpenCLIP's tokenizer pads with


def read_single_file(path: pathlib.Path, *, prediction_type: str | None = None) -> Pipeline:
    """Open a file of Stable Diffusion 1.x or 2.x.

    Args:
      path: a local file, safetensors or PyTorch's.
      prediction_type: "epsilon" or "v_prediction". None: "v_prediction" for a 2.x that is given
        latents alone, such as 2.1 for 768x768, and "epsilon" for all others. The 2.x for 512x512
        ("base") needs "epsilon".

    Raises:
      UsageError: it cannot be read, or is another kind of model.
    """
    store = open_tensors(path)
    _check_kind(path, store)
    is_2 = any(name.startswith(OF_OPENCLIP) for name in store)
    unet = store.renamed(unet_names_from_compvis(store))
    config = unet_config(path, unet.shapes, is_2=is_2)
    text = _text_encoder(store)
    width = text.config["hidden_size"]
    if config["cross_attention_dim"] != width:
        raise UsageError(
            f"The U-Net in {path} looks at features of {config['cross_attention_dim']} numbers, "
            f"and its text encoder gives {width}: it is no Stable Diffusion 1.x or 2.x."
        )
    if prediction_type is None:
        is_v = is_2 and config["in_channels"] == config["out_channels"]
        prediction_type = "v_prediction" if is_v else "epsilon"
    choose("prediction_type", prediction_type, PREDICTIONS)
    average = store.renamed(unet_names_from_compvis(store, average=True))
    return Pipeline(
        path=path,
        kind="StableDiffusionInpaintPipeline"
        if config["in_channels"] == 9
        else "StableDiffusionPipeline",
        unet=Part(config, unet),
        vae=_vae(store),
        text_encoder=text,
        scheduler=scheduler_config(prediction_type, is_2=is_2),
        tokenizer=None,
        pad_token=_PAD_OF_OPENCLIP if is_2 else "<|endoftext|>",
        unet_ema=Part(config, average) if len(average) else None,
    )


def _check_kind(path: pathlib.Path, names: Iterable[str]) -> None:
    """Refuse a file that is not a whole model.

    Raises:
      UsageError: see above.
    """
    names = list(names)
    if any(name.startswith(_XL) for name in names):
        raise UsageError(f"{path} is a Stable Diffusion XL: 1.x and 2.x can be read.")
    lacks = [
        what
        for prefix, what in (
            (PREFIX, "U-Net"),
            ("first_stage_model.", "VAE"),
            ("cond_stage_model.", "text encoder"),
        )
        if not any(name.startswith(prefix) for name in names)
    ]
    if lacks:
        raise UsageError(
            f"{path} is no Stable Diffusion 1.x or 2.x as its authors save it: it has no "
            f"{' and no '.join(lacks)} under their names."
        )


def _vae(store: TensorStore) -> Part:
    tensors = store.renamed(vae_names_from_compvis(store))
    entries = {
        name: entry.as_matrix() if ".to_" in name and len(entry.shape) == 4 else entry
        for name, entry in tensors.entries.items()
    }
    return Part(vae_config(tensors.shapes), TensorStore(entries))


def _text_encoder(store: TensorStore) -> Part:
    encoder = text_encoder_of_single_file(store)
    entries: dict[str, Stored] = {}
    for name, theirs in text_names_of_single_file(store).items():
        entry = store.entries[name]
        if name.endswith("text_projection"):  # the model does not use it
            continue
        if not entry.shape or entry.shape[0] % len(theirs):
            raise UsageError(f"{name} has shape {list(entry.shape)}, and q, k and v are expected.")
        entries |= zip(theirs, entry.split(len(theirs)), strict=True)
    return Part(config_from_text_encoder(encoder), TensorStore(entries))
