"""Weights for the tests against diffusers: none of them zero, as NumPy arrays."""


def perturbed(network):
    """Return the PyTorch network with noise on all parameters, ready for evaluation."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            assert parameter.abs().max() > 0, name
    return network.eval()


def state_dict(network):
    """Name -> NumPy array."""
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}
