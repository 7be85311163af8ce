"""The PyTorch networks of the benchmarks against diffusers' with the same state dict."""

import importlib

import pytest

from ddpm_jax.models.dit import DiT
from ddpm_jax.models.unet import UNet

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")
pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[parity]'")

UNET = UNet(
    resolution=16, ch=32, ch_mult=(1, 2, 2), num_res_blocks=2, attn_resolutions=(8,), dropout=0.0
)
DIT = DiT(hidden_size=48, depth=2, num_heads=3, num_classes=5, out_channels=6)


@pytest.fixture(scope="module")
def peers():
    return importlib.import_module("pytorch_peers")  # needs PyTorch


def assert_same_function(port, original, *inputs):
    """Both with random weights, none of them zero, in evaluation and with gradients."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in original.parameters():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    port.load_state_dict(original.state_dict(), strict=True)
    ours, theirs = port(*inputs).sample, original(*inputs).sample
    # Float32 sums in another order: 1e-5 of the largest output.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())
    for network, output in ((port, ours), (original, theirs)):
        output.square().mean().backward()
        assert all(value.grad is not None for value in network.parameters())
    grads = {name: value.grad for name, value in port.named_parameters()}
    for name, value in original.named_parameters():
        scale = value.grad.abs().max().item()
        torch.testing.assert_close(grads[name], value.grad, rtol=0, atol=1e-4 * scale + 1e-7)


def test_the_unet_is_that_of_diffusers(peers):
    port, original = (peers.pytorch_unet(UNET, "cpu", peer) for peer in ("port", "diffusers"))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert_same_function(port.eval(), original.eval(), x, torch.tensor([3, 900]))


def test_the_transformer_is_that_of_diffusers(peers):
    port, original = (
        peers.pytorch_dit(DIT, "cpu", peer, image_size=8, image_channels=4)
        for peer in ("port", "diffusers")
    )
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = x, torch.tensor([3, 60, 900]), torch.tensor([0, 4, 5])  # the last is the null class
    assert_same_function(port.eval(), original.eval(), *inputs)
