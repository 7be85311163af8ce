"""PyTorch's side of a comparison: the networks and their training step. Ours is in `comparison.py`.

A network is diffusers', or the port of it in `pytorch_ports.py`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from comparison import LEARNING_RATE, Batch
from pytorch_ports import DiTPort, UNetPort

from ddpm_jax.models.dit import DiT
from ddpm_jax.models.unet import UNet


def pytorch_unet(unet: UNet, device: str, peer: str = "diffusers") -> torch.nn.Module:
    """Returns their network with our fields, initialised by PyTorch from a fixed seed."""
    torch.manual_seed(0)
    attends = [unet.resolution // 2**i in unet.attn_resolutions for i in range(len(unet.ch_mult))]
    channels = tuple(unet.ch * mult for mult in unet.ch_mult)
    if peer == "port":
        network = UNetPort(
            channels=channels,
            attends=attends,
            layers_per_block=unet.num_res_blocks,
            image_channels=unet.out_channels,
            dropout=unet.dropout,
        )
        return network.to(device)
    import diffusers  # not on every machine that has PyTorch

    return diffusers.UNet2DModel(
        sample_size=unet.resolution,
        in_channels=unet.out_channels,
        out_channels=unet.out_channels,
        layers_per_block=unet.num_res_blocks,
        block_out_channels=channels,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=None,
        dropout=unet.dropout,
        downsample_padding=0,
        norm_eps=1e-6,
        attn_norm_num_groups=32,  # or the middle's attention is not normalised under scale_shift
        resnet_time_scale_shift="scale_shift" if unet.scale_shift_norm else "default",
        flip_sin_to_cos=False,
        freq_shift=1,
    ).to(device)


def pytorch_dit(
    dit: DiT, device: str, peer: str = "diffusers", *, image_size: int, image_channels: int
) -> torch.nn.Module:
    """As `pytorch_unet`; none of the weights is zero."""
    torch.manual_seed(0)
    if peer == "port":
        network = DiTPort(
            image_size=image_size,
            image_channels=image_channels,
            patch_size=dit.patch_size,
            hidden_size=dit.hidden_size,
            depth=dit.depth,
            num_heads=dit.num_heads,
            num_classes=dit.num_classes,
            out_channels=dit.out_channels,
        )
        return network.to(device)
    import diffusers  # not on every machine that has PyTorch

    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=dit.num_heads,
        attention_head_dim=dit.hidden_size // dit.num_heads,
        in_channels=image_channels,
        out_channels=dit.out_channels,
        num_layers=dit.depth,
        sample_size=image_size,
        patch_size=dit.patch_size,
        num_embeds_ada_norm=dit.num_classes,
        norm_eps=dit.norm_eps,
    ).to(device)
    embedding = network.transformer_blocks[0].norm1.emb
    embedding.class_embedder.dropout_prob = 0.0  # in training it would hide some labels
    for block in network.transformer_blocks[1:]:  # one embedding for all, as in the paper
        block.norm1.emb = embedding
    return network


def pytorch_arrays(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns their parameters as NumPy arrays by name."""
    return {name: value.detach().cpu().numpy() for name, value in network.state_dict().items()}


def channels_first(array: np.ndarray, device: str) -> torch.Tensor:
    """[B, H, W, C] -> [B, C, H, W] in PyTorch's usual layout."""
    return torch.tensor(array.transpose(0, 3, 1, 2), device=device).contiguous()


def pytorch_training_step(
    network: torch.nn.Module,
    batch: Batch,
    dtype: str,
    device: str,
    told: dict[str, torch.Tensor],
    *,
    layout: torch.memory_format = torch.contiguous_format,
    **of_adam: Any,
) -> Callable[[], torch.Tensor]:
    """Returns a function that does one step of training on the batch and returns its loss.

    Mean squared error, gradients, Adam, in bfloat16 by automatic casts. A call does not wait for
    the device.

    Args:
      network: theirs, or what torch.compile makes of it.
      batch: as ours is given it.
      dtype: of the computation, float32 or bfloat16.
      device: of the network.
      told: its inputs besides images and times.
      layout: of the images; the network has it already.
      of_adam: options of torch.optim.Adam.
    """
    x, eps = (
        channels_first(batch.x, device).to(memory_format=layout),
        channels_first(batch.eps, device),
    )
    t = torch.tensor(batch.t, device=device)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, **of_adam)
    network.train()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = torch.nn.functional.mse_loss(network(x, t, **told).sample.float(), eps)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
