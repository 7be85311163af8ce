"""The same model for other images than it was trained on: of another size, or decoded in tiles."""

import dataclasses

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.models.trunk import Trunk


def at_size(model: DiffusionModel, height: int, width: int) -> DiffusionModel:
    """Return the model of images of height x width pixels, with the same weights.

    Raises:
      UsageError: the model has one size only, or its first stage and network cannot halve these.
    """
    network = getattr(model.network, "network", model.network)
    if not isinstance(network, Trunk) or model.conditioning.low_res_factor:
        raise UsageError(
            "height and width are for a U-Net, which takes images of any size: leave them out for "
            "this model."
        )
    first_stage = model.codec.first_stage
    factor = 1 if first_stage is None else first_stage.model.network.factor
    # a convolution that pads on both sides takes odd sizes too, and the way up follows it
    by_block = network.resampling != "conv" or network.block_down or network.block_up
    is_any = network.downsample_padding == "both" and not by_block
    stride = factor * (1 if is_any else 2 ** (len(network.ch_mult) - 1))
    for name, size in {"height": height, "width": width}.items():
        if size % stride:
            below = size // stride * stride
            near = f"{below} or {below + stride}" if below else f"{stride}"
            raise UsageError(f"{name} is {size}: give a multiple of {stride}, as {near}.")
    shape = (height, width, model.image_shape[2])
    return dataclasses.replace(model, codec=dataclasses.replace(model.codec, image_shape=shape))


def with_tiles(model: DiffusionModel, tile: int) -> DiffusionModel:
    """Return the model whose latents are decoded in tiles of `tile` x `tile` pixels.

    Raises:
      UsageError: it is over pixels, or its first stage cannot decode such tiles.
    """
    first_stage = model.codec.first_stage
    if first_stage is None:
        raise UsageError("tile is for a model over latents, which are decoded: leave it out here.")
    factor = first_stage.model.network.factor
    if tile % factor or tile < 2 * factor:
        raise UsageError(
            f"tile is {tile}: give a multiple of {factor} pixels, {2 * factor} or more, as "
            f"{64 * factor}."
        )
    return dataclasses.replace(model, codec=dataclasses.replace(model.codec, tile=tile))
