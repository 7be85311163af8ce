"""The two networks that are measured, at full and at toy size, with their conditions."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax.numpy as jnp
import numpy as np
from comparison import Batch

from ddpm_jax.interop import diffusers, diffusers_dit
from ddpm_jax.models import attention
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.dit import SIZES, DiT
from ddpm_jax.models.unet import UNet

CHECKED = 4  # images that both networks are compared on
DTYPES = ("float32", "bfloat16")


class Measured(NamedTuple):
    """A network and the batches it is trained with, the most telling first."""

    network: UNet | DiT
    image_size: int
    channels: int
    batch_sizes: tuple[int, ...]

    @property
    def name(self) -> str:
        return "unet" if isinstance(self.network, UNet) else "dit"

    def batch(self, size: int) -> Batch:
        return Batch.random(size, self.image_size, self.channels)

    def labels(self, size: int) -> np.ndarray | None:
        """A class for each image, int [B]; None for a network without."""
        classes = self.network.num_classes
        return np.random.default_rng(1).integers(0, classes, size) if classes else None

    def condition(self, size: int) -> Condition | None:
        labels = self.labels(size)
        return None if labels is None else Condition(label=jnp.asarray(labels))

    def to_peer(self, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The parameters as a PyTorch state dict."""
        if self.name == "unet":
            return diffusers.unet_params_to_diffusers(params, self.network)
        return diffusers_dit.dit_params_to_diffusers(params, self.network)

    def from_peer(self, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The inverse of `to_peer`."""
        if self.name == "unet":
            return diffusers.unet_params_from_diffusers(state_dict, self.network)
        return diffusers_dit.dit_params_from_diffusers(state_dict, self.network)

    def weights(self, folder: pathlib.Path) -> pathlib.Path:
        """The file that hands our weights to PyTorch."""
        return folder / f"{self.name}_weights.npz"

    def outputs(self, folder: pathlib.Path) -> pathlib.Path:
        """The file with our outputs of the batch of `CHECKED` images, by type."""
        return folder / f"{self.name}_outputs.npz"


def measured(name: str, *, small: bool) -> Measured:
    """The network `unet`, CIFAR-10's, or `dit`, DiT-B/2 on latents of 32x32x4 with 1000 classes."""
    if name == "unet":
        if small:
            toy = UNet(resolution=8, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,))
            return Measured(toy, 8, 3, (4,))
        return Measured(UNet(), 32, 3, (128, 512, 256, 64))
    size = {"hidden_size": 48, "depth": 2, "num_heads": 3} if small else SIZES["B"]._asdict()
    network = DiT(
        **size,
        num_classes=5 if small else 1000,
        out_channels=4,
        time_embedding="cos_sin_inclusive",  # diffusers'
    )
    return Measured(network, 8 if small else 32, 4, (4, 8) if small else (128, 256, 64))


@contextlib.contextmanager
def products_alone() -> Iterator[None]:
    """While its body runs, what is traced computes attention by products, whatever the device."""
    with mock.patch.dict(attention.IMPLEMENTATIONS, cudnn=attention.attention_by_products):
        yield
