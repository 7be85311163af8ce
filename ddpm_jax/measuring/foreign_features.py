"""The networks of other projects in whose features images are compared, with the user's weights.

Each function here makes the `FeatureNetwork` of a name; `feature_networks.load_features` has them
all. How its authors resize, round and scale images belongs to a network, and goes into the record.
"""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.resizing import check_resizing, resized
from ddpm_jax.errors import UsageError, say
from ddpm_jax.evaluation.features import FeatureNetwork
from ddpm_jax.files import as_path
from ddpm_jax.interop import dinov2_weights, inception_weights
from ddpm_jax.interop.clip_image import image_encoder_from_config, image_params_from_transformers
from ddpm_jax.interop.containers import Container, open_container
from ddpm_jax.interop.published_weights import Published, check_digest, missing_weights
from ddpm_jax.measuring.feature_programs import batched
from ddpm_jax.models import image_encoder, vision_transformer
from ddpm_jax.models.inception import DIMS, NUM_CLASSES, SIZE, Inception
from ddpm_jax.monitoring.results import weights_digest

INCEPTION = {  # name of the features -> field of `InceptionFeatures`
    "inception": "pooled",
    "inception_768": "mixed_6e",
    "inception_192": "pool_2",
    "inception_64": "pool_1",
}
DINOV2_SIZE = 224  # height and width of an image (Stein et al. 2023)


class Preparation(NamedTuple):
    """How images become what a network is given; None for the network's own."""

    channels: int  # of the images: 1, which become 3, or 3
    resizer: str | None
    rounding: str | None
    batch_size: int


class Weights(NamedTuple):
    """Tensors of a file or a directory, and what identifies them."""

    container: Container
    identity: dict[str, str]  # for the record; empty for a directory
    warning: str = ""  # that they are not the published ones, said when they have been read

    @property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """The tensors at the top of the file, or of the only group that there is.

        Raises:
          UsageError: there are several groups, and none at the top.
        """
        groups = self.container.groups
        if "" in groups:
            return groups[""]
        if len(groups) == 1:
            return next(iter(groups.values()))
        raise UsageError(
            f"{self.container.path} has several networks, {', '.join(sorted(groups)[:5])}: give "
            "the file or the directory of one."
        )


def inception_features(
    name: str, weights: str | os.PathLike | None, preparation: Preparation
) -> FeatureNetwork:
    """Return a layer of the FID's Inception-v3, and for `inception` the logits.

    Images are resized as torch-fidelity and the original code do, by tf1_bilinear, and scaled as
    they do, (x - 128) / 128; with pytorch_bilinear as pytorch-fid does, x / 127.5 - 1.

    Raises:
      UsageError: no weights, or others; unknown names; images of other than 1 or 3 channels.
    """
    _check(name, preparation)
    opened = _open(name, weights, inception_weights.PUBLISHED)
    params = inception_weights.inception_params(opened.tensors, source=str(weights))
    _say(opened.warning)
    resizer = preparation.resizer or "tf1_bilinear"
    centre, half = (127.5, 127.5) if resizer == "pytorch_bilinear" else (128.0, 128.0)
    layer, network = INCEPTION[name], Inception()

    def apply(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        found = network.apply({"params": params}, (_in_colour(x) - centre) / half)
        return getattr(found, layer), found.logits if layer == "pooled" else None

    return _network(
        name,
        (DIMS[layer], NUM_CLASSES if layer == "pooled" else 0),
        apply,
        params,
        preparation._replace(resizer=resizer, rounding=preparation.rounding or "none"),
        SIZE,
        opened.identity | {"scaling": f"(x - {centre:g}) / {half:g}"},
    )


def dinov2_features(
    name: str, weights: str | os.PathLike | None, preparation: Preparation
) -> FeatureNetwork:
    """Return DINOv2's token of the whole image, as FD-DINOv2 takes it (Stein et al. 2023).

    Images are resized to 224x224 by clean, rounded to 8 bits, and normalised by ImageNet's colours.

    Raises:
      UsageError: as `inception_features`.
    """
    _check(name, preparation)
    opened = _open(name, weights, dinov2_weights.PUBLISHED)
    heads = opened.container.facts.get("config.json", {}).get("num_attention_heads")
    network, params = dinov2_weights.dinov2_from_tensors(
        opened.tensors, heads=heads if isinstance(heads, int) else None, source=str(weights)
    )
    if DINOV2_SIZE % network.patch_size:
        raise UsageError(
            f"{weights} has patches of {network.patch_size} pixels, which do not divide "
            f"{DINOV2_SIZE}: give DINOv2's weights, whose patches have 14."
        )
    _say(opened.warning)
    scale = _normalised(vision_transformer.MEAN, vision_transformer.STD)

    def apply(params: Any, x: jax.Array) -> tuple[jax.Array, None]:
        return network.apply({"params": params}, scale(_in_colour(x))), None

    return _network(
        name,
        (network.width, 0),
        apply,
        params,
        preparation._replace(
            resizer=preparation.resizer or "clean", rounding=preparation.rounding or "nearest"
        ),
        DINOV2_SIZE,
        opened.identity | {"layers": network.layers, "position_offset": network.offset},
    )


def clip_features(
    name: str, weights: str | os.PathLike | None, preparation: Preparation
) -> FeatureNetwork:
    """Return the projected features of CLIP's image encoder, of length 1 (Jayasumana et al. 2024).

    Images are resized to the encoder's size by clean, without cutting their longer side.

    Raises:
      UsageError: as `inception_features`; no CLIP of transformers.
    """
    _check(name, preparation)
    if weights is None:
        raise UsageError(
            f"The features {name} need CLIP, which does not come with the package: name a "
            "directory of a CLIPModel of transformers by feature_weights, for CMMD that of "
            "openai/clip-vit-large-patch14-336 on the hub."
        )
    opened = Weights(open_container(weights), {})
    config = opened.container.facts.get("config.json")
    if config is None:
        raise UsageError(f"{weights} holds no CLIP of transformers: there is no config.json.")
    encoder = image_encoder_from_config(config)
    if not encoder.projection:
        raise UsageError(f"{weights} has no projection, whose features are compared: give a CLIP.")
    params = image_params_from_transformers(
        opened.tensors, encoder, source=f"image encoder's state dict in {weights}"
    )
    scale = _normalised(image_encoder.MEAN, image_encoder.STD)

    def apply(params: Any, x: jax.Array) -> tuple[jax.Array, None]:
        found = encoder.apply({"params": params}, scale(_in_colour(x))).projected
        return found / jnp.linalg.norm(found, axis=-1, keepdims=True), None

    return _network(
        name,
        (encoder.projection, 0),
        apply,
        params,
        preparation._replace(
            resizer=preparation.resizer or "clean", rounding=preparation.rounding or "none"
        ),
        encoder.image_size,
        {},
    )


def _check(name: str, preparation: Preparation) -> None:
    """Refuse images or names before a file is read.

    Raises:
      UsageError: images of other than 1 or 3 channels; unknown names.
    """
    check_resizing(preparation.resizer or "clean", preparation.rounding or "none")
    if preparation.channels not in (1, 3):
        raise UsageError(
            f"The features {name} are of pictures in grey or in colour, and these have "
            f"{preparation.channels} channels: choose others, for example pixels."
        )


def _open(
    name: str, weights: str | os.PathLike | None, published: tuple[Published, ...]
) -> Weights:
    """Open a file or a directory.

    Raises:
      UsageError: there is none, it is damaged, or its name has the digits of another digest.
    """
    if weights is None:
        raise missing_weights(name, published)
    path = as_path(weights)
    if path.is_dir():
        return Weights(open_container(path), {})
    digest, warning = check_digest(path, published)
    said = f"warning: {name}: {warning}" if warning else ""
    return Weights(open_container(path), {"sha256": digest}, said)


def _say(warning: str) -> None:
    if warning:
        say(warning, file=sys.stderr)


def _network(
    name: str,
    sizes: tuple[int, int],
    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]],
    params: Any,
    preparation: Preparation,
    size: int,
    record: dict[str, Any],
) -> FeatureNetwork:
    """Put a network together; `sizes` are those of its features and logits."""
    _, resizer, rounding, batch_size = preparation
    extract = batched(
        apply,
        params,
        lambda images: resized(images, size, resizer=resizer, rounding=rounding),
        batch_size=batch_size,
    )
    whole = {
        "weights_sha256": weights_digest(params),
        **record,
        "input_size": size,
        "resizer": resizer,
        "rounding": rounding,
    }
    return FeatureNetwork(name, sizes[0], extract, whole, sizes[1])


def _in_colour(x: jax.Array) -> jax.Array:
    """Repeat grey: [B, H, W, 1 or 3] -> [B, H, W, 3]."""
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


def _normalised(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[jax.Array], jax.Array]:
    """Return the map of 0..255 to colours of the mean 0 and the deviation 1."""
    mean, std = (jnp.array(values)[None, None, None] for values in (mean, std))
    return lambda x: (x / 255.0 - mean) / std
