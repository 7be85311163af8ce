"""The Diffusion Transformer against diffusers' `DiTTransformer2DModel` with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.diffusers_dit import dit_params_from_diffusers, dit_params_to_diffusers
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.dit import DiT

from .conftest import perturbed, state_dict

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")
diffusers = pytest.importorskip(
    "diffusers", reason="diffusers is not installed: pip install -e '.[parity]'"
)

SMALL = DiT(
    hidden_size=48,
    depth=2,
    num_heads=3,
    num_classes=5,
    out_channels=8,
    time_embedding="cos_sin_inclusive",
)
# Early times: theirs has its frequencies rounded in another place, and at t = 999 an angle is off
# by up to 1e-4. the last label is the null class
T, LABELS = np.array([0, 7, 60], np.int32), np.array([0, 4, 5], np.int32)


def peer(dit, size=8, in_channels=4):
    """Return their network with our fields, nonzero weights and one embedding for all blocks."""
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=dit.num_heads,
        attention_head_dim=dit.hidden_size // dit.num_heads,
        in_channels=in_channels,
        out_channels=dit.out_channels,
        num_layers=dit.depth,
        sample_size=size,
        patch_size=dit.patch_size,
        num_embeds_ada_norm=dit.num_classes,
        norm_eps=1e-6,
    )
    network = perturbed(network)
    first = network.transformer_blocks[0].norm1.emb.state_dict()
    for block in network.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(first)
    return network


@functools.partial(jax.jit, static_argnums=0)
def ours(dit, params, x):
    return dit.apply({"params": params}, x, T, Condition(label=LABELS))


def theirs(network, x):
    x, t, labels = torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(T), torch.tensor(LABELS)
    with torch.no_grad():
        return network(x, timestep=t, class_labels=labels).sample.numpy().transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def weights():
    return state_dict(peer(SMALL))


@pytest.mark.parametrize(
    ("fields", "size", "in_channels"),
    [
        ({}, 8, 4),
        (
            {"patch_size": 4, "hidden_size": 32, "num_heads": 1, "depth": 1, "out_channels": 3},
            16,
            3,
        ),
    ],
)
def test_outputs_are_those_of_diffusers(fields, size, in_channels):
    dit = SMALL.clone(**fields)
    network = peer(dit, size, in_channels)
    params = dit_params_from_diffusers(state_dict(network), dit)
    x = np.random.default_rng(0).normal(size=(3, size, size, in_channels)).astype(np.float32)
    actual, expected = ours(dit, params, x), theirs(network, x)
    assert actual.shape == expected.shape
    # Float32 sums in another order, some 20 layers deep: 1e-5 of the largest output.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_authors_embedding_of_the_time_is_diffusers_without_its_shift():
    dit = SMALL.clone(time_embedding="cos_sin")
    network = peer(SMALL)
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 4)).astype(np.float32)
    shifted = theirs(network, x)
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    expected = theirs(network, x)
    actual = ours(dit, dit_params_from_diffusers(state_dict(network), dit), x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected - shifted).max() > 1e-3 * np.abs(expected).max()


def test_there_and_back_is_the_identity_and_diffusers_loads_it(weights):
    back = dit_params_to_diffusers(dit_params_from_diffusers(weights, SMALL), SMALL)
    assert set(back) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    peer(SMALL).load_state_dict(
        {name: torch.tensor(value) for name, value in back.items()}, strict=True
    )


def test_blocks_that_embed_time_or_label_each_in_its_own_way_are_refused(weights):
    name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    changed = {**weights, name: weights[name] + np.eye(1, dtype=np.float32)}
    with pytest.raises(
        UsageError,
        match=r"blocks\.1\.norm1\.emb\.class_embedder.* is not .*blocks\.0.* once for all",
    ):
        dit_params_from_diffusers(changed, SMALL)


def test_missing_left_over_and_misshapen_tensors_are_named(weights):
    with pytest.raises(
        UsageError, match=r"lacks proj_out_2\.bias: give the DiT the fields \(patch_size"
    ):
        dit_params_from_diffusers(
            {k: v for k, v in weights.items() if k != "proj_out_2.bias"}, SMALL
        )
    with pytest.raises(
        UsageError, match=r"has, beyond the network's, transformer_blocks\.1\.attn1"
    ):
        dit_params_from_diffusers(weights, SMALL.clone(depth=1))
    with pytest.raises(UsageError, match=r"lacks transformer_blocks\.2\."):
        dit_params_from_diffusers(weights, SMALL.clone(depth=3))
    with pytest.raises(UsageError, match=r"pos_embed\.proj\.weight .* the DiT has \(64, 48\)"):
        dit_params_from_diffusers(weights, SMALL.clone(patch_size=4))
    with pytest.raises(UsageError, match=r"embedding_table\.weight .* the DiT has \(11, 48\)"):
        dit_params_from_diffusers(weights, SMALL.clone(num_classes=10))
    for call in (dit_params_from_diffusers, dit_params_to_diffusers):
        with pytest.raises(UsageError, match="no DiT without classes"):
            call({}, SMALL.clone(num_classes=0))
    assert jax.tree.all(
        jax.tree.map(lambda p: p.dtype == jnp.float32, dit_params_from_diffusers(weights, SMALL))
    )
